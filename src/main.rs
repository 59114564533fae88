//! The `greendot` binary. On anything but Linux its build is one error that says what to do.

#[cfg(target_os = "linux")]
#[path = "main/program.rs"]
mod program;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    program::run()
}

#[cfg(not(target_os = "linux"))]
compile_error!(
    "greendot runs on Linux alone: it is made of epoll, SO_REUSEPORT and mapped files as Linux has \
     them. On macOS and Windows run it in a container: `docker build -t greendot .` in its source, \
     then `docker run -p 8080:8080 greendot serve --http 0.0.0.0:8080 --insecure`"
);

#[cfg(not(target_os = "linux"))]
fn main() {}
