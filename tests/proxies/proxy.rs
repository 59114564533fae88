//! The proxies: found on this machine, configured by what docs/proxies recommends, run as children.
//!
//! Owns how each is started: in the foreground, with folders of its own, on an address that no
//! other test has. Nothing of the machine's own configuration or services is touched.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::client::Stream;
use crate::harness::{Deadline, Home, Server, pause, skipped, until};
use crate::http::{Answer, Conn};
use crate::process::Process;

/// The proxy's port, on the address of its home.
const PORT: u16 = 8_000;
/// How long it may take to stop by itself, in ms.
const STOP_MS: u64 = 3_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Nginx,
    Haproxy,
    Apache,
    Varnish,
}

/// A proxy in front of a server.
pub(crate) struct Proxy {
    process: Process,
    address: SocketAddr,
}

impl Proxy {
    /// Starts one in front of a server; None: it is not installed.
    pub(crate) fn start(kind: Kind, home: &Home, server: &Server) -> Option<Proxy> {
        let program = match kind {
            Kind::Nginx => "nginx",
            Kind::Haproxy => "haproxy",
            Kind::Apache => "apache2",
            Kind::Varnish => "varnishd",
        };
        let sbin = Path::new("/usr/sbin").join(program);
        if !sbin.exists() {
            skipped(&format!("{program} is not installed"));
            return None;
        }
        let folder = home.path().join("proxy");
        std::fs::create_dir(&folder).expect("a folder can be made");
        let address = SocketAddr::from((home.ip(), PORT));
        let folder_name = folder.to_str().expect("a plain path").to_owned();
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("a file can be written");
            path.to_str().expect("a plain path").to_owned()
        };
        let args = match kind {
            Kind::Nginx => {
                let site = recommended("nginx.conf", server.http, "listen 80;", &address);
                let main = nginx_main(&folder_name, &write("site.conf", site));
                let (main, log) = (
                    write("nginx.conf", main),
                    format!("{folder_name}/error.log"),
                );
                let daemon = "daemon off;".to_owned();
                vec![
                    "-e".into(),
                    log,
                    "-p".into(),
                    folder_name,
                    "-c".into(),
                    main,
                    "-g".into(),
                    daemon,
                ]
            }
            Kind::Haproxy => {
                let text = recommended("haproxy.cfg", server.http, "bind :80", &address);
                vec!["-db".into(), "-f".into(), write("haproxy.cfg", text)]
            }
            Kind::Apache => {
                let site = recommended("apache.conf", server.http, "<VirtualHost *:80>", &address);
                let main = apache_main(&folder_name, address, &write("site.conf", site));
                vec![
                    "-DFOREGROUND".into(),
                    "-f".into(),
                    write("apache.conf", main),
                ]
            }
            Kind::Varnish => {
                let vcl = recommended("varnish.vcl", server.http, "", &address);
                let vcl = write("default.vcl", vcl);
                let words =
                    format!("-F -j none -s malloc,32m -n {folder_name}/work -a {address} -f {vcl}");
                words.split(' ').map(str::to_owned).collect()
            }
        };
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = home.program(sbin.to_str().expect("a plain path"), &args);
        let log = || std::fs::File::create(folder.join("log")).expect("a file can be made");
        // A group of its own, so that none of its workers outlives the test.
        command.process_group(0).stdout(log()).stderr(log());
        let mut process = Process::start(&mut command);
        until(&format!("{program} listens"), || {
            if process.has_ended() {
                let said = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
                panic!("{program} has ended: {said}");
            }
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()
        });
        Some(Proxy { process, address })
    }

    pub(crate) fn connect(&self) -> Conn {
        Conn::to(self.address)
    }

    pub(crate) fn get(&self, target: &str) -> Answer {
        self.connect().get(target)
    }

    /// Opens a stream through it.
    pub(crate) fn stream(&self, query: &str) -> Stream {
        let opened = Stream::open(self.connect(), query, None);
        opened.unwrap_or_else(|status| panic!("the stream is answered {status}"))
    }

    /// The same as who comes back, and as often as it takes: an error is one of the proxy's.
    pub(crate) fn stream_again(&self, query: &str, last_id: &str) -> Stream {
        until("a stream opens behind the proxy", || {
            Stream::open(self.connect(), query, Some(last_id)).ok()
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let pid: Pid = self.process.pid();
        if !self.process.has_ended() {
            self.process.signal(Signal::TERM);
        }
        let deadline = Deadline::in_ms(STOP_MS);
        while !self.process.has_ended() && deadline.left().is_some() {
            pause(20);
        }
        // Workers that their parent has left; there are none if it ended well.
        let _none_left = kill_process_group(pid, Signal::KILL);
    }
}

/// A configuration as docs/proxies has it, with the addresses of a test.
fn recommended(name: &str, server: SocketAddr, listen: &str, address: &SocketAddr) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/proxies");
    let text = std::fs::read_to_string(folder.join(name)).expect("it is documented");
    let put = |text: String, from: &str, to: &str| {
        assert!(text.contains(from), "{name} has no {from:?}");
        text.replace(from, to)
    };
    let (ip, port) = (server.ip(), server.port());
    let text = match name {
        "varnish.vcl" => {
            let text = put(text, "\"127.0.0.1\"", &format!("\"{ip}\""));
            put(text, "\"8080\"", &format!("\"{port}\""))
        }
        _ => put(text, "127.0.0.1:8080", &server.to_string()),
    };
    match listen {
        "" => text,
        "<VirtualHost *:80>" => put(text, listen, &format!("<VirtualHost {address}>")),
        "bind :80" => put(text, listen, &format!("bind {address}")),
        listen => put(text, listen, &format!("listen {address};")),
    }
}

/// What Debian's nginx.conf says beside folders and sites.
fn nginx_main(folder: &str, site: &str) -> String {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {folder}/{name};"))
        .join("\n");
    format!(
        "user root;\nworker_processes 1;\npid {folder}/nginx.pid;\n\
         events {{ worker_connections 768; }}\n\
         http {{\nsendfile on;\ntcp_nopush on;\ntypes_hash_max_size 2048;\n\
         default_type application/octet-stream;\naccess_log off;\ngzip on;\n{temporary}\n\
         include {site};\n}}\n"
    )
}

/// What Debian's apache2.conf and mpm_event.conf say beside folders and sites.
fn apache_main(folder: &str, address: SocketAddr, site: &str) -> String {
    let modules = ["mpm_event", "authz_core", "proxy", "proxy_http"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so"))
        .join("\n");
    let user = match rustix::process::geteuid().is_root() {
        true => "User www-data\nGroup www-data\n",
        false => "",
    };
    format!(
        "ServerRoot {folder}\nServerName localhost\nDefaultRuntimeDir {folder}\n\
         PidFile {folder}/pid\nErrorLog {folder}/error.log\nListen {address}\n{modules}\n{user}\
         Timeout 300\nKeepAlive On\nMaxKeepAliveRequests 100\nKeepAliveTimeout 5\n\
         StartServers 2\nMinSpareThreads 25\nMaxSpareThreads 75\nThreadLimit 64\n\
         ThreadsPerChild 25\nMaxRequestWorkers 150\nMaxConnectionsPerChild 0\n\
         Include {site}\n"
    )
}
