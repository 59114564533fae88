//! What the command line says of itself to shells and to man(1), made when it is asked for: the
//! grammar is the one source.

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Ask, command};
use crate::version;

pub(super) fn completions_command() -> Command {
    Command::new("completions")
        .about("Print what a shell completes greendot's command line with")
        .arg(
            Arg::new("shell")
                .value_name("SHELL")
                .required(true)
                .value_parser(value_parser!(Shell))
                .help("The shell that reads it"),
        )
}

pub(super) fn man_command() -> Command {
    Command::new("man")
        .about("Print a manual page, for `man -l -`")
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .help("Of which command; of greendot itself if none is named"),
        )
}

pub(super) fn completions_asked(given: &ArgMatches) -> Ask {
    Ask::Completions(*given.get_one("shell").expect("it is required"))
}

pub(super) fn man_asked(given: &ArgMatches) -> Ask {
    Ask::Man(given.get_one("command").cloned())
}

/// The script of a shell.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "greendot", &mut script);
    script
}

/// A manual page: of the command, or of the program.
///
/// Errors: there is no such command; the text names those that there are.
pub fn manual(name: Option<&str>) -> Result<Vec<u8>, String> {
    let mut all = command();
    all.build();
    let page = match name {
        None => &all,
        Some(name) => all.find_subcommand(name).ok_or_else(|| {
            let names: Vec<&str> = all.get_subcommands().map(Command::get_name).collect();
            format!("{name} is no command; there are {}", names.join(", "))
        })?,
    };
    let mut roff = Vec::new();
    let man = Man::new(page.clone()).source(format!("greendot {}", version::VERSION));
    let rendered = man.render(&mut roff);
    rendered
        .map(|()| roff)
        .map_err(|error| format!("render the page: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_learns_each_flag() {
        for shell in [
            Shell::Bash,
            Shell::Elvish,
            Shell::Fish,
            Shell::PowerShell,
            Shell::Zsh,
        ] {
            let script = String::from_utf8(completions(shell)).unwrap();
            for word in ["beat-interval-ms", "doctor", "completions"] {
                assert!(script.contains(word), "{word} of {shell}");
            }
        }
    }

    #[test]
    fn each_command_has_its_page() {
        let page = |name: Option<&str>| String::from_utf8(manual(name).unwrap()).unwrap();
        let mut commands = command();
        commands.build();
        let names: Vec<&str> = commands.get_subcommands().map(Command::get_name).collect();
        assert!(names.len() > 10, "{names:?}");
        for name in names {
            let page = page(Some(name));
            let title = format!(".TH greendot-{name} 1");
            assert!(page.contains(&title), "{name}: {}", &page[..200]);
        }
        assert!(page(None).contains(".TH greendot 1"));
        assert!(page(Some("serve")).contains("\\-\\-beat\\-interval\\-ms"));
        let why = manual(Some("serv")).unwrap_err();
        assert!(
            why.starts_with("serv is no command; there are serve, realtime, "),
            "{why}"
        );
    }
}
