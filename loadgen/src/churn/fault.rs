//! What is done to the servers in the middle of the day: a command of the operator's.
//!
//! Owns when it begins, and that it ends well.

use std::io;
use std::process::{Child, Command};
use std::time::Duration;

use super::ChurnArgs;
use crate::affinity::spawn_unpinned;

/// A command that takes longer will not end.
const LENGTH_US_MAX: u64 = 600_000_000;

/// The command of `--fault`.
pub(super) struct Fault {
    command: String,
    due_us: u64,
    heal_us: u64,
    stage: Stage,
}

enum Stage {
    Due,
    Going(Child),
    /// When, us.
    Ended(u64),
}

impl Fault {
    /// For a day from `start_us` on; None: there is none.
    pub(super) fn new(args: &ChurnArgs, start_us: u64) -> Option<Fault> {
        let day = Duration::from_secs_f64(args.minutes * 60.0);
        let at = args.fault_at.unwrap_or(day / 3);
        Some(Fault {
            command: args.fault.clone()?,
            due_us: start_us + at.as_micros() as u64,
            heal_us: args.heal.as_micros() as u64,
            stage: Stage::Due,
        })
    }

    /// Begins it when it is due, and notices its end.
    ///
    /// Errors: it can not be run, fails, or takes longer than ten minutes.
    pub(super) fn step(&mut self, now_us: u64) -> io::Result<()> {
        match &mut self.stage {
            Stage::Due if now_us >= self.due_us => {
                let child = spawn_unpinned(Command::new("sh").args(["-c", &self.command]))?;
                self.stage = Stage::Going(child);
            }
            Stage::Going(child) => match child.try_wait()? {
                Some(status) if status.success() => self.stage = Stage::Ended(now_us),
                Some(status) => {
                    return Err(io::Error::other(format!("--fault ended with {status}")));
                }
                None if now_us > self.due_us + LENGTH_US_MAX => {
                    return Err(io::Error::other("--fault did not end within ten minutes"));
                }
                None => {}
            },
            Stage::Due | Stage::Ended(_) => {}
        }
        Ok(())
    }

    /// Until when it excuses what watchers are not told, us, as known at `now_us`. None: it has not
    /// begun.
    pub(super) fn excuses_until_us(&self, now_us: u64) -> Option<u64> {
        match self.stage {
            Stage::Due => None,
            Stage::Going(_) => Some(now_us + self.heal_us),
            Stage::Ended(at_us) => Some(at_us + self.heal_us),
        }
    }
}

impl Drop for Fault {
    /// A run that fails leaves nothing behind that goes on.
    fn drop(&mut self) {
        if let Stage::Going(child) = &mut self.stage {
            // One that has just ended is no fault.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common;

    fn fault(command: &str) -> Fault {
        let line = "--minutes 0.5 --heal 2s --fault COMMAND";
        let (_, mut args) = common::parsed::<ChurnArgs>(line).unwrap();
        args.fault = Some(command.to_owned());
        Fault::new(&args, 5_000_000).unwrap()
    }

    fn stepped(fault: &mut Fault, now_us: u64) -> io::Result<()> {
        for _ in 0..500 {
            fault.step(now_us)?;
            if matches!(fault.stage, Stage::Ended(_)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end");
    }

    #[test]
    fn it_begins_at_a_third_of_the_day_and_excuses_until_it_is_healed() {
        let mut fault = fault("true");
        fault.step(14_999_999).unwrap();
        assert_eq!(fault.excuses_until_us(14_999_999), None);
        fault.step(15_000_000).unwrap();
        assert_eq!(fault.excuses_until_us(15_500_000), Some(17_500_000));
        stepped(&mut fault, 16_000_000).unwrap();
        assert_eq!(fault.excuses_until_us(20_000_000), Some(18_000_000));
    }

    #[test]
    fn one_that_fails_is_said() {
        let mut fault = fault("exit 3");
        let why = stepped(&mut fault, 15_000_000).unwrap_err().to_string();
        assert_eq!(why, "--fault ended with exit status: 3");
    }

    #[test]
    fn one_that_does_not_end_is_ended() {
        let mut fault = fault("exec sleep 600");
        fault.step(15_000_000).unwrap();
        fault.step(615_000_000).unwrap();
        let why = fault.step(615_000_001).unwrap_err().to_string();
        assert_eq!(why, "--fault did not end within ten minutes");
    }
}
