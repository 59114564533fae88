//! A terminal with a program in it: a pseudoterminal of the kernel's, and a screen of as much of
//! ECMA-48 as a table needs.
//!
//! Shares no code with the program. An escape sequence that it does not know fails the test, since
//! nothing then says what a person would see.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::harness::{Deadline, PATIENCE_MS};

const COLUMNS: u16 = 80;
const ROWS: u16 = 24;

/// The end of a pseudoterminal at which a person sits.
pub(crate) struct Terminal {
    master: File,
    /// The other end, kept open so that its modes can be asked for after the program has gone.
    slave: File,
    incoming: Receiver<Vec<u8>>,
    screen: Screen,
}

impl Terminal {
    pub(crate) fn new() -> Terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("the kernel has pseudoterminals");
        grantpt(&master).expect("it is ours");
        unlockpt(&master).expect("it is ours");
        let slave = File::from(ioctl_tiocgptpeer(&master, flags).expect("it is unlocked"));
        let size = Winsize {
            ws_row: ROWS,
            ws_col: COLUMNS,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size).expect("a terminal has a size");
        let master = File::from(master);
        let mut reader = master.try_clone().expect("descriptors are free");
        let (sender, incoming) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            // Fails once the other end is closed.
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal {
            master,
            slave,
            incoming,
            screen: Screen::default(),
        }
    }

    /// Has the program that `command` starts speak to this terminal.
    pub(crate) fn attach<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let end = || Stdio::from(self.slave.try_clone().expect("descriptors are free"));
        command.stdin(end()).stdout(end()).stderr(end())
    }

    /// Has the program read from this terminal and nothing more.
    pub(crate) fn attach_stdin<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.stdin(self.slave.try_clone().expect("descriptors are free"))
    }

    /// The modes of its line discipline.
    pub(crate) fn modes(&self) -> Termios {
        tcgetattr(&self.slave).expect("it is a terminal")
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("it is open");
    }

    /// Waits until the screen shows what `wanted` accepts.
    pub(crate) fn expect(&mut self, what: &str, wanted: impl Fn(&Screen) -> bool) -> &Screen {
        let deadline = Deadline::in_ms(PATIENCE_MS);
        while !wanted(&self.screen) {
            let Some(left) = deadline.left() else {
                panic!("waited in vain: {what}; on the screen: {:#?}", self.screen);
            };
            self.take(left);
        }
        &self.screen
    }

    /// What is shown once the program has said its last.
    pub(crate) fn rest(&mut self) -> &Screen {
        while self.take(Duration::from_millis(100)) {}
        &self.screen
    }

    fn take(&mut self, patience: Duration) -> bool {
        let bytes = self.incoming.recv_timeout(patience);
        bytes.map(|bytes| self.screen.feed(&bytes)).is_ok()
    }
}

/// One character and its colour (a number of SGR; 0: none).
type Cell = (char, u32);

/// What a person sees.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    lines: Vec<Vec<Cell>>,
    row: usize,
    column: usize,
    colour: u32,
    /// DECAWM: long lines go on in the next.
    no_wrap: bool,
    /// Of a sequence or character that has not all come.
    pending: Vec<u8>,
}

impl Screen {
    /// Its lines without the empty ones at the end.
    pub(crate) fn text(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .lines
            .iter()
            .map(|line| line.iter().map(|(shown, _)| *shown).collect())
            .collect();
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines
    }

    /// The colour of the first character of a line.
    pub(crate) fn colour_of_dot(&self, row: usize) -> u32 {
        self.lines[row][0].1
    }

    /// Row and column of the cursor.
    pub(crate) fn cursor(&self) -> (usize, usize) {
        (self.row, self.column)
    }

    /// Whether it is as a shell wants to find it: no colour left on, long lines wrapped, no
    /// sequence cut short. The sequences that hide the cursor or take another screen are none that
    /// [`Screen`] knows.
    pub(crate) fn is_plain(&self) -> bool {
        self.colour == 0 && !self.no_wrap && self.pending.is_empty()
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let whole = match std::str::from_utf8(&pending) {
            Ok(text) => text,
            Err(error) => {
                assert_eq!(error.error_len(), None, "not UTF-8: {pending:?}");
                std::str::from_utf8(&pending[..error.valid_up_to()]).expect("valid up to there")
            }
        };
        let mut rest = whole;
        while let Some(next) = rest.chars().next() {
            if next != '\u{1b}' {
                self.put(next);
                rest = &rest[next.len_utf8()..];
                continue;
            }
            let Some(end) = rest.find(|c: char| c.is_ascii_alphabetic()) else {
                break;
            };
            let (sequence, behind) = rest.split_at(end + 1);
            self.obey(sequence);
            rest = behind;
        }
        let used = whole.len() - rest.len();
        self.pending = pending[used..].to_vec();
    }

    fn put(&mut self, shown: char) {
        match shown {
            '\r' => self.column = 0,
            '\n' => self.row += 1,
            shown if shown.is_control() => panic!("a control character: {shown:?}"),
            shown => {
                let (column, cell) = (self.column, (shown, self.colour));
                let line = self.line();
                if line.len() <= column {
                    line.resize(column + 1, (' ', 0));
                }
                line[column] = cell;
                self.column += 1;
            }
        }
    }

    fn line(&mut self) -> &mut Vec<Cell> {
        if self.lines.len() <= self.row {
            self.lines.resize(self.row + 1, Vec::new());
        }
        &mut self.lines[self.row]
    }

    fn obey(&mut self, sequence: &str) {
        let number = |text: &str| {
            text.parse::<u32>()
                .unwrap_or_else(|_| panic!("{sequence:?}"))
        };
        match sequence
            .strip_prefix("\u{1b}[")
            .map(|rest| rest.split_at(rest.len() - 1))
        {
            Some(("", "J")) => {
                let column = self.column;
                self.line().truncate(column);
                self.lines.truncate(self.row + 1);
            }
            Some(("?7", "l")) => self.no_wrap = true,
            Some(("?7", "h")) => self.no_wrap = false,
            Some((rows, "A")) => self.row = self.row.saturating_sub(number(rows) as usize),
            Some((colour, "m")) => self.colour = number(colour),
            _ => panic!("an unknown sequence: {sequence:?}"),
        }
    }
}
