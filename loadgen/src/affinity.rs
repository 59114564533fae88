//! Which cores this process runs on, and that the servers which it starts do not inherit the
//! choice.
//!
//! Owns `--pin`.

use std::io;
use std::process::{Child, Command};
use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where this process might run before it was pinned.
static BEFORE: OnceLock<CpuSet> = OnceLock::new();

/// Runs this thread, and those that it starts, on `core` alone.
pub fn pin(core: usize) -> io::Result<()> {
    // A second choice does not change what was so before the first.
    let _ = BEFORE.set(sched_getaffinity(None)?);
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// Starts a process that may run wherever this one might before it was pinned. A child inherits the
/// cores of the thread that starts it.
pub fn spawn_unpinned(command: &mut Command) -> io::Result<Child> {
    let Some(before) = BEFORE.get() else {
        return command.spawn();
    };
    let pinned = sched_getaffinity(None)?;
    sched_setaffinity(None, before)?;
    let child = command.spawn();
    sched_setaffinity(None, &pinned)?;
    child
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn cores_of_a_child(spawn: impl Fn(&mut Command) -> io::Result<Child>) -> String {
        let mut command = Command::new("grep");
        command
            .args(["Cpus_allowed_list", "/proc/self/status"])
            .stdout(Stdio::piped());
        let out = spawn(&mut command).unwrap().wait_with_output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    }

    #[test]
    fn a_server_runs_where_the_generator_might_before_it_was_pinned() {
        let everywhere = cores_of_a_child(Command::spawn);
        pin(0).unwrap();
        assert_eq!(cores_of_a_child(Command::spawn), "Cpus_allowed_list:\t0\n");
        assert_eq!(cores_of_a_child(spawn_unpinned), everywhere);
        assert_eq!(cores_of_a_child(Command::spawn), "Cpus_allowed_list:\t0\n");
    }
}
