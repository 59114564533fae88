//! What a Rust source names: every path in it, with its line, made absolute.
//!
//! Owns the reading of `use` trees, attributes, modules and tests. The lexing is proc-macro2's, so
//! comments and strings can not mislead it, and paths inside macros are seen. Never knows a rule.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A path that a source names, in a `use` or anywhere else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Named {
    /// Its segments; a path of the crate begins with `crate`, whatever way it was written.
    pub path: Vec<String>,
    /// Where it stands.
    pub line: usize,
    /// It is in code that only tests compile.
    pub test: bool,
    /// It is a `use`; `a::*` has the path of `a`.
    pub in_use: bool,
}

/// What one file names, and the modules that it declares for tests alone.
#[derive(Default, Debug)]
pub(crate) struct Source {
    pub named: Vec<Named>,
    pub test_modules: Vec<String>,
}

/// Reads a file whose own module is `module`: `["engine", "mail"]`, or nothing for the root.
pub(crate) fn read(text: &str, module: &[&str]) -> Source {
    let tokens: TokenStream = text.parse().expect("a source of the crate lexes");
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut module: Vec<String> = module.iter().map(|&name| name.to_owned()).collect();
    let mut source = Source::default();
    let test = tokens.windows(3).any(|three| {
        punct(&three[0]) == Some('#') && punct(&three[1]) == Some('!') && is_cfg_test(&three[2])
    });
    source.walk(&tokens, &mut module, test);
    source
}

impl Source {
    fn walk(&mut self, tokens: &[TokenTree], module: &mut Vec<String>, test: bool) {
        let mut at = 0;
        while at < tokens.len() {
            let rest = &tokens[at..];
            if let [hash, group, item @ ..] = rest
                && !test
                && punct(hash) == Some('#')
                && is_cfg_test(group)
            {
                let length = item_length(item);
                self.walk(&item[..length], module, true);
                at += 2 + length;
                continue;
            }
            at += match &rest[0] {
                TokenTree::Group(group) => {
                    self.walk(&inside(group), module, test);
                    1
                }
                TokenTree::Ident(word) if *word == "mod" => self.module(rest, module, test),
                TokenTree::Ident(word) if *word == "use" && !is_capture(rest) => {
                    let end = rest.iter().position(|token| punct(token) == Some(';'));
                    let end = end.unwrap_or(rest.len());
                    self.tree(&rest[1..end], &[], module, test);
                    end
                }
                _ => self.path(rest, module, test),
            };
        }
    }

    /// `mod name { .. }` or `mod name;`: walks the one, notes the other if it is for tests.
    fn module(&mut self, tokens: &[TokenTree], module: &mut Vec<String>, test: bool) -> usize {
        let Some(name) = tokens.get(1).and_then(word) else {
            return 1;
        };
        module.push(name);
        match tokens.get(2) {
            Some(TokenTree::Group(group)) => self.walk(&inside(group), module, test),
            _ if test => self.test_modules.push(module.join("::")),
            _ => {}
        }
        module.pop();
        3.min(tokens.len())
    }

    /// A path outside `use`: `a::b::c`, with or without a leading `::`.
    fn path(&mut self, tokens: &[TokenTree], module: &[String], test: bool) -> usize {
        let leading = if is_colons(tokens) { 2 } else { 0 };
        let Some(first) = tokens.get(leading).and_then(word) else {
            return leading.max(1);
        };
        let (mut path, mut at) = (vec![first], leading + 1);
        while is_colons(&tokens[at..])
            && let Some(next) = tokens.get(at + 2).and_then(word)
        {
            path.push(next);
            at += 3;
        }
        let line = tokens[leading].span().start().line;
        let path = absolute(path, module, leading > 0);
        self.named.push(Named {
            path,
            line,
            test,
            in_use: false,
        });
        at
    }

    /// A `use` tree after `above`: `a::b`, `a as b`, `a::*`, `a::{self, b::{c}}`.
    fn tree(&mut self, tokens: &[TokenTree], above: &[String], module: &[String], test: bool) {
        let mut path = above.to_vec();
        let external = above.is_empty() && is_colons(tokens);
        let mut at = if is_colons(tokens) { 2 } else { 0 };
        let mut line = 0;
        while let Some(token) = tokens.get(at) {
            line = token.span().start().line;
            match token {
                TokenTree::Group(group) => {
                    let items = inside(group);
                    for item in items.split(|token| punct(token) == Some(',')) {
                        self.tree(item, &path, module, test);
                    }
                    return;
                }
                TokenTree::Ident(word) if *word == "as" => break,
                // `a::{self}` is `a`; `self::a` is not.
                TokenTree::Ident(word) if *word == "self" && !path.is_empty() => {}
                TokenTree::Ident(_) => path.extend(word(token)),
                _ => {}
            }
            at += 1;
        }
        // A list's last comma is followed by nothing.
        if line > 0 {
            let path = absolute(path, module, external);
            self.named.push(Named {
                path,
                line,
                test,
                in_use: true,
            });
        }
    }
}

/// `super` and `self` resolved against the module that they stand in; `greendot` is the crate too.
fn absolute(path: Vec<String>, module: &[String], external: bool) -> Vec<String> {
    let first = path.first().map(String::as_str);
    if external || !matches!(first, Some("self" | "super")) {
        return path;
    }
    let mut from = module.to_vec();
    let mut rest = path.as_slice();
    while let Some(("self" | "super", after)) = rest.split_first().map(|(a, b)| (a.as_str(), b)) {
        if rest[0] == "super" {
            from.pop();
        }
        rest = after;
    }
    [&["crate".to_owned()], from.as_slice(), rest].concat()
}

/// How many tokens the item after an attribute has: to its block, or its `;`, or, of a field, a
/// variant or an argument, its `,`.
fn item_length(tokens: &[TokenTree]) -> usize {
    const ITEMS: [&str; 13] = [
        "fn",
        "mod",
        "use",
        "struct",
        "enum",
        "impl",
        "trait",
        "const",
        "static",
        "type",
        "let",
        "union",
        "macro_rules",
    ];
    let mut is_item = false;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                return at + 1;
            }
            TokenTree::Ident(word) if ITEMS.iter().any(|item| word == item) => is_item = true,
            TokenTree::Punct(_) if punct(token) == Some(';') => return at + 1,
            TokenTree::Punct(_) if punct(token) == Some(',') && !is_item => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// `[cfg(test)]`, also as one of several conditions that must all hold.
fn is_cfg_test(token: &TokenTree) -> bool {
    let TokenTree::Group(group) = token else {
        return false;
    };
    let text: String = group.stream().to_string().split_whitespace().collect();
    text == "cfg(test)" || (text.starts_with("cfg(all(test,") && !text.contains("any("))
}

/// `use<'a>` in a type, which imports nothing.
fn is_capture(tokens: &[TokenTree]) -> bool {
    tokens.get(1).and_then(punct) == Some('<')
}

fn is_colons(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [a, b, ..] if punct(a) == Some(':') && punct(b) == Some(':'))
}

fn punct(token: &TokenTree) -> Option<char> {
    match token {
        TokenTree::Punct(punct) => Some(punct.as_char()),
        _ => None,
    }
}

fn word(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Ident(word) => Some(word.to_string().trim_start_matches("r#").to_owned()),
        _ => None,
    }
}

fn inside(group: &Group) -> Vec<TokenTree> {
    group.stream().into_iter().collect()
}
