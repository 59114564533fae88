//! The library as a Redis runs it: in a Lua of the same version, with the few functions of Redis
//! that it calls.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use greendot::fleet::LIBRARY;
use greendot::fleet::traffic::Reply;
use greendot::planted::{self, Planted};
use mlua::{Function, Lua, MultiValue, Result, Table, Value};

pub(crate) type Hash = BTreeMap<Vec<u8>, Vec<u8>>;
/// All keys of a server: hashes. A string is one with the field [`TEXT`] alone.
pub(crate) type Data = BTreeMap<Vec<u8>, Hash>;
/// The field of a string.
pub(crate) const TEXT: &[u8] = b"";

/// A message that a server publishes: the channel, and what.
pub(crate) type Published = (Vec<u8>, Vec<u8>);

/// What a call works on.
#[derive(Default)]
struct Stage {
    data: Data,
    unix_ms: u64,
    published: Vec<Published>,
}

pub(crate) struct Library {
    functions: BTreeMap<String, Function>,
    stage: Rc<RefCell<Stage>>,
    lua: Lua,
}

impl Library {
    pub(crate) fn load() -> Library {
        let lua = Lua::new();
        let stage = Rc::new(RefCell::new(Stage::default()));
        let functions = Rc::new(RefCell::new(BTreeMap::new()));
        let globals = lua.globals();
        globals
            .set("redis", redis(&lua, &stage, &functions).unwrap())
            .unwrap();
        globals.set("struct", structs(&lua).unwrap()).unwrap();
        globals.set("bit", bits(&lua).unwrap()).unwrap();
        lua.load(text_with_bug()).exec().unwrap();
        let functions = functions.take();
        Library {
            functions,
            stage,
            lua,
        }
    }

    /// `FCALL` of a function: what it answers, and what it published.
    pub(crate) fn call(
        &self,
        data: &mut Data,
        unix_ms: u64,
        function: &str,
        keys: &[&[u8]],
        args: &[&[u8]],
    ) -> (Reply, Vec<Published>) {
        *self.stage.borrow_mut() = Stage {
            data: std::mem::take(data),
            unix_ms,
            published: Vec::new(),
        };
        let Some(called) = self.functions.get(function) else {
            panic!("{function} is not registered");
        };
        let strings = |words: &[&[u8]]| {
            let words = words
                .iter()
                .map(|word| self.lua.create_string(word).unwrap());
            self.lua.create_sequence_from(words).unwrap()
        };
        let answer: Value = called.call((strings(keys), strings(args))).unwrap();
        let stage = self.stage.take();
        *data = stage.data;
        (reply(&answer), stage.published)
    }
}

/// Bugs that are planted in the library: what stands there once, and what stands there instead.
const PLANTED: [(Planted, &str, &str); 4] = [
    (
        Planted::NumbersIgnored,
        "elseif own and k <= own.k then",
        "elseif false then",
    ),
    (
        Planted::FlagsDropped,
        "% SAID\n    if flags == 0 then",
        "% SAID\n    if true then",
    ),
    (
        Planted::InvisibleArrives,
        "tell('=', flags, user, came)",
        "tell('+', flags % INVISIBLE, user, '')",
    ),
    (
        Planted::SinceAnew,
        "is_known = is_known and known >",
        "is_known = false and known >",
    ),
];

/// The library's text without its first line, which Redis alone reads.
fn text_with_bug() -> String {
    let (_, text) = LIBRARY.split_once('\n').unwrap();
    let mut text = text.to_owned();
    for (bug, was, is) in PLANTED {
        assert_eq!(text.matches(was).count(), 1, "{bug:?} has no place");
        if planted::is(bug) {
            text = text.replace(was, is);
        }
    }
    text
}

fn reply(value: &Value) -> Reply {
    match value {
        Value::String(text) => Reply::Bytes(text.as_bytes().to_vec()),
        Value::Integer(number) => Reply::Number(*number),
        Value::Number(number) => Reply::Number(*number as i64),
        Value::Table(table) => match table.get::<Value>("err").unwrap() {
            Value::String(text) => Reply::Error(text.to_str().unwrap().to_owned()),
            _ => Reply::List(
                table
                    .sequence_values()
                    .map(|one| reply(&one.unwrap()))
                    .collect(),
            ),
        },
        Value::Nil | Value::Boolean(false) => Reply::Nil,
        other => panic!("{other:?} is no answer"),
    }
}

fn redis(
    lua: &Lua,
    stage: &Rc<RefCell<Stage>>,
    functions: &Rc<RefCell<BTreeMap<String, Function>>>,
) -> Result<Table> {
    let redis = lua.create_table()?;
    let (stage, functions) = (stage.clone(), functions.clone());
    let call = lua.create_function(move |lua, words: MultiValue| {
        let words: Vec<Vec<u8>> = words.iter().map(word).collect();
        run(lua, &mut stage.borrow_mut(), &words)
    })?;
    // None of those that it is used with fails here.
    redis.set("pcall", call.clone())?;
    redis.set("call", call)?;
    let register = move |_: &Lua, (name, function): (String, Function)| {
        functions.borrow_mut().insert(name, function);
        Ok(())
    };
    redis.set("register_function", lua.create_function(register)?)?;
    let error = |lua: &Lua, text: mlua::String| {
        let table = lua.create_table()?;
        table.set("err", text)?;
        Ok(table)
    };
    redis.set("error_reply", lua.create_function(error)?)?;
    Ok(redis)
}

fn word(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.as_bytes().to_vec(),
        other => panic!("{other:?} is no word of a command"),
    }
}

fn run(lua: &Lua, stage: &mut Stage, words: &[Vec<u8>]) -> Result<Value> {
    let (name, rest) = words.split_first().unwrap();
    let text = |bytes: &Vec<u8>| lua.create_string(bytes).map(Value::String);
    let found = |bytes: Option<&Vec<u8>>| bytes.map_or(Ok(Value::Boolean(false)), text);
    match (&name[..], rest) {
        (b"TIME", []) => {
            let (seconds, micros) = (stage.unix_ms / 1_000, stage.unix_ms % 1_000 * 1_000);
            let time = lua.create_table()?;
            time.push(seconds.to_string())?;
            time.push(micros.to_string())?;
            Ok(Value::Table(time))
        }
        (b"HGET", [key, field]) => found(stage.data.get(key).and_then(|hash| hash.get(field))),
        (b"GET", [key]) => found(stage.data.get(key).and_then(|text| text.get(TEXT))),
        (b"SET", [key, value, px, _]) if px == b"PX" => {
            set(&mut stage.data, key, &[TEXT.to_vec(), value.clone()]);
            Ok(Value::Nil)
        }
        (b"HMGET", [key, fields @ ..]) => {
            let hash = stage.data.get(key);
            let values = lua.create_table()?;
            for field in fields {
                values.push(found(hash.and_then(|hash| hash.get(field)))?)?;
            }
            Ok(Value::Table(values))
        }
        (b"HGETALL", [key]) => {
            let pairs = lua.create_table()?;
            for (field, value) in stage.data.get(key).into_iter().flatten() {
                pairs.push(text(field)?)?;
                pairs.push(text(value)?)?;
            }
            Ok(Value::Table(pairs))
        }
        (b"HSET", [key, pairs @ ..]) => {
            set(&mut stage.data, key, pairs);
            Ok(Value::Nil)
        }
        (b"HDEL", [key, fields @ ..]) => {
            remove(&mut stage.data, key, fields);
            Ok(Value::Nil)
        }
        (b"SPUBLISH", [channel, message]) => {
            stage.published.push((channel.clone(), message.clone()));
            Ok(Value::Nil)
        }
        _ => panic!("{words:?} is not modelled"),
    }
}

pub(crate) fn set(data: &mut Data, key: &[u8], pairs: &[Vec<u8>]) {
    let hash = data.entry(key.to_vec()).or_default();
    for pair in pairs.chunks(2) {
        hash.insert(pair[0].clone(), pair[1].clone());
    }
}

pub(crate) fn remove(data: &mut Data, key: &[u8], fields: &[Vec<u8>]) {
    if let Some(hash) = data.get_mut(key) {
        for field in fields {
            hash.remove(field);
        }
        if hash.is_empty() {
            data.remove(key);
        }
    }
}

fn bits(lua: &Lua) -> Result<Table> {
    let bit = lua.create_table()?;
    let band = |_: &Lua, (a, b): (u32, u32)| Ok(a & b);
    let bor = |_: &Lua, (a, b): (u32, u32)| Ok(a | b);
    bit.set("band", lua.create_function(band)?)?;
    bit.set("bor", lua.create_function(bor)?)?;
    Ok(bit)
}

/// A piece of a format: a number of so many bytes, or so many bytes as they are.
enum Piece {
    Number(usize),
    Bytes(usize),
}

fn pieces(format: &str) -> Vec<Piece> {
    let mut rest = format
        .strip_prefix('>')
        .expect("the network's order")
        .chars()
        .peekable();
    let mut pieces = Vec::new();
    while let Some(kind) = rest.next() {
        let mut size = String::new();
        while let Some(digit) = rest.next_if(char::is_ascii_digit) {
            size.push(digit);
        }
        pieces.push(match kind {
            'B' => Piece::Number(1),
            'I' => Piece::Number(size.parse().unwrap()),
            'c' => Piece::Bytes(size.parse().unwrap()),
            other => panic!("{other} is not modelled"),
        });
    }
    pieces
}

fn structs(lua: &Lua) -> Result<Table> {
    let table = lua.create_table()?;
    let pack = |lua: &Lua, (format, values): (String, MultiValue)| {
        let mut bytes = Vec::new();
        for (piece, value) in pieces(&format).into_iter().zip(values) {
            match (piece, value) {
                (Piece::Number(size), value) => {
                    let number = match value {
                        Value::Integer(number) => number as u64,
                        Value::Number(number) => number as u64,
                        other => panic!("{other:?} is no number"),
                    };
                    bytes.extend(&number.to_be_bytes()[8 - size..]);
                }
                (Piece::Bytes(size), Value::String(text)) => {
                    bytes.extend(&text.as_bytes()[..size]);
                }
                (Piece::Bytes(_), other) => panic!("{other:?} is no string"),
            }
        }
        lua.create_string(&bytes)
    };
    let unpack = |lua: &Lua, (format, text, at): (String, mlua::String, Option<usize>)| {
        let (bytes, mut at) = (text.as_bytes().to_vec(), at.unwrap_or(1) - 1);
        let mut values = Vec::new();
        for piece in pieces(&format) {
            let (Piece::Number(size) | Piece::Bytes(size)) = piece;
            let part = bytes.get(at..at + size).expect("data string too short");
            at += size;
            values.push(match piece {
                Piece::Number(_) => {
                    let number = part
                        .iter()
                        .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
                    Value::Number(number as f64)
                }
                Piece::Bytes(_) => Value::String(lua.create_string(part)?),
            });
        }
        values.push(Value::Number((at + 1) as f64));
        Ok(MultiValue::from_iter(values))
    };
    table.set("pack", lua.create_function(pack)?)?;
    table.set("unpack", lua.create_function(unpack)?)?;
    Ok(table)
}
