//! Whose limits count: those of the process that serves, or will serve, and not the shell's in
//! which `greendot doctor` is typed.
//!
//! Owns the reading of another process's limits, and of the unit's.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::limits::{Finding, Found, Verdict};

const SUBJECT: &str = "whose limits";
/// The unit of docs/deploy.
const UNIT: &str = "greendot.service";
/// It is there where systemd is process 1 (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Soft and hard limit of file descriptors; None: unlimited.
type Limits = (Option<u64>, Option<u64>);

/// Puts the limits that count into `found`, those of `pid` if one is given. Says whose they are.
///
/// Errors are findings too: there is no such process, or it may not be looked at.
pub(super) fn settle(found: &mut Found, pid: Option<i32>) -> Finding {
    let (limits, whose) = match pid {
        Some(pid) => match of_process(pid) {
            Ok(limits) => (limits, format!("those of process {pid}")),
            Err(why) => return Finding::new(Verdict::Fail, SUBJECT, why),
        },
        None => match of_unit() {
            Some(limits) => (limits, format!("those of {UNIT}, as systemd has it")),
            None => {
                let detail = "those of this shell; --pid PID judges a running node's";
                return Finding::new(Verdict::Ok, SUBJECT, detail);
            }
        },
    };
    (found.nofile_soft, found.nofile_hard) = limits;
    Finding::new(Verdict::Ok, SUBJECT, whose)
}

fn of_process(pid: i32) -> Result<Limits, String> {
    let path = format!("/proc/{pid}/limits");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("{path}: {error}; name a running node's process with --pid"))?;
    in_proc(&text).ok_or_else(|| format!("{path}: has no limit of open files"))
}

/// The line of proc(5): `Max open files  1024  524288  files`.
fn in_proc(text: &str) -> Option<Limits> {
    let mut lines = text.lines();
    let rest = lines.find_map(|line| line.strip_prefix("Max open files "))?;
    let mut words = rest.split_whitespace();
    Some((limit(words.next()?)?, limit(words.next()?)?))
}

/// What systemd would give the unit, if it runs here and knows it. With all drop-ins.
fn of_unit() -> Option<Limits> {
    if !Path::new(BOOTED).is_dir() {
        return None;
    }
    let shown = Command::new("systemctl")
        .args(["show", UNIT, "--property"])
        .arg("LoadState,LimitNOFILE,LimitNOFILESoft")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    in_unit(&String::from_utf8_lossy(&shown.stdout))
}

/// Lines of `systemctl show`; None: there is no such unit.
fn in_unit(text: &str) -> Option<Limits> {
    let of = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find_map(|(given, value)| (given == name).then_some(value))
    };
    of("LoadState").filter(|state| *state == "loaded")?;
    Some((limit(of("LimitNOFILESoft")?)?, limit(of("LimitNOFILE")?)?))
}

fn limit(word: &str) -> Option<Option<u64>> {
    match word {
        "unlimited" | "infinity" => Some(None),
        word => word.parse().ok().map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_a_process() {
        let head =
            "Limit                     Soft Limit           Hard Limit           Units     \n";
        for (line, limits) in [
            (
                "Max open files            1024                 524288               files     ",
                Some((Some(1_024), Some(524_288))),
            ),
            (
                "Max open files            unlimited            unlimited            files     ",
                Some((None, None)),
            ),
            ("Max open files            many", None),
            (
                "Max msgqueue size         819200               819200    bytes",
                None,
            ),
        ] {
            assert_eq!(in_proc(&format!("{head}{line}\n")), limits, "{line}");
        }
    }

    #[test]
    fn limits_of_a_unit() {
        for (text, limits) in [
            (
                "LimitNOFILE=524288\nLimitNOFILESoft=1024\nLoadState=loaded\n",
                Some((Some(1_024), Some(524_288))),
            ),
            (
                "LimitNOFILE=infinity\nLimitNOFILESoft=infinity\nLoadState=loaded\n",
                Some((None, None)),
            ),
            (
                "LimitNOFILE=524288\nLimitNOFILESoft=524288\nLoadState=not-found\n",
                None,
            ),
            ("", None),
        ] {
            assert_eq!(in_unit(text), limits, "{text}");
        }
    }

    #[test]
    fn a_process_that_is_named_counts() {
        let own = std::process::id() as i32;
        let mut found = Found::default();
        let finding = settle(&mut found, Some(own));
        assert_eq!(
            (finding.verdict, finding.detail),
            (Verdict::Ok, format!("those of process {own}"))
        );
        let read = Found::read();
        assert_eq!(
            (found.nofile_soft, found.nofile_hard),
            (read.nofile_soft, read.nofile_hard)
        );
        // Beyond the last that the kernel gives.
        let finding = settle(&mut Found::default(), Some(1 << 22 | 1));
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(
            finding
                .detail
                .ends_with("name a running node's process with --pid"),
            "{finding:?}"
        );
    }
}
