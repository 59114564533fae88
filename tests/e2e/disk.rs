//! File systems of a test's own: small ones, and ones that stand still.
//!
//! Owns what it mounts: a mount lives in a namespace, and goes with the process that holds it.
//! Freezes nothing but a mount of its own, and thaws it also when the test panics or is killed.
//! Needs root and, for [`Disk::ext4`], mkfs.ext4, a loop device and fsfreeze; where something is
//! missing there is no disk, so that a test can be skipped for all to see.

use std::fs::metadata;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::harness::{Home, Server};
use crate::process::{Lines, Process};

/// A file system on a home's data folder, which goes with its holder: a process in a mount
/// namespace.
pub(crate) struct Disk {
    holder: Process,
    data_dir: PathBuf,
}

impl Disk {
    /// One of so many bytes, in memory.
    pub(crate) fn tmpfs(home: &Home, bytes: u64) -> Option<Disk> {
        Disk::mount(home, &format!("mount -t tmpfs -o size={bytes} greendot"))
    }

    /// An ext4 of 64 MB, in a file beside the data folder.
    pub(crate) fn ext4(home: &Home) -> Option<Disk> {
        let make = "truncate -s 64M image && mkfs.ext4 -q -F image && mount -o loop image";
        Disk::mount(home, make)
    }

    /// `script` lacks the folder to mount on.
    fn mount(home: &Home, script: &str) -> Option<Disk> {
        let data_dir = home.data_dir();
        std::fs::create_dir(&data_dir).expect("it can be made");
        let dir = data_dir.display();
        let script = format!("{script} '{dir}' && echo mounted && exec sleep 300");
        let mut command = home.program("unshare", &["--mount", "sh", "-c", &script]);
        let mut holder = Process::try_start(&mut command)?;
        let mounted = Lines::of(holder.take_stdout()).next()? == "mounted";
        mounted.then_some(Disk { holder, data_dir })
    }

    /// Starts `greendot serve` on it.
    pub(crate) fn serve(&self, home: &Home, flags: &[&str]) -> Server {
        let mut server = home.launch(&mut self.command(home, flags));
        server.key_file = self.seen_from_outside(&self.data_dir).join("fleet.key");
        server
    }

    /// `greendot serve` on it.
    pub(crate) fn command(&self, home: &Home, flags: &[&str]) -> Command {
        let data_dir = format!("--data-dir={}", self.data_dir.display());
        let [http, udp] = home.addresses();
        let binary = env!("CARGO_BIN_EXE_greendot");
        let mut command = home.program(
            "nsenter",
            &[&self.namespace(), binary, "serve", &http, &udp, &data_dir],
        );
        command.args(flags);
        command
    }

    /// Leaves no room on it.
    pub(crate) fn fill(&self) {
        let path = self.seen_from_outside(&self.data_dir).join("fill");
        let mut file = std::fs::File::create(path).expect("it can be made");
        let zeros = [0; 64 << 10];
        while file.write_all(&zeros).is_ok() {}
    }

    /// It stands still until what is returned is dropped. None: it cannot be frozen here.
    pub(crate) fn freeze(&self, home: &Home) -> Option<Frozen> {
        let device = |path: &Path| metadata(self.seen_from_outside(path)).map(|file| file.dev());
        let parent = self.data_dir.parent().expect("it is in the home's folder");
        assert_ne!(
            device(&self.data_dir).expect("it is mounted"),
            device(parent).expect("the home's folder"),
            "only a mount of our own is ever frozen"
        );
        // The end of its input thaws it, however this process ends. Nothing else stops it: also not
        // a signal to this process's group, by which a time limit may kill all of a test.
        let script = "trap '' INT TERM HUP; fsfreeze --freeze \"$0\" && echo frozen && read -r _; \
                      fsfreeze --unfreeze \"$0\"";
        let mut command = home.program("nsenter", &[&self.namespace(), "sh", "-c", script]);
        command.arg(&self.data_dir).process_group(0);
        command.stdin(Stdio::piped()).stderr(Stdio::null());
        let mut thaws = command.spawn().ok()?;
        let said = Lines::of(thaws.stdout.take().expect("it is piped"));
        let frozen = Frozen(thaws);
        (said.next()? == "frozen").then_some(frozen)
    }

    fn namespace(&self) -> String {
        format!("--mount=/proc/{}/ns/mnt", self.holder.pid())
    }

    /// The path by which this process reaches what only the namespace sees.
    fn seen_from_outside(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix("/").expect("the path is absolute");
        Path::new(&format!("/proc/{}/root", self.holder.pid())).join(inside)
    }
}

/// A file system that stands still, and moves again once this is dropped.
pub(crate) struct Frozen(Child);

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Not killed: it would leave the disk frozen.
        let _ = self.0.wait();
    }
}
