//! The proxies: found on this machine, configured by the files of docs/deploy, run as children.
//!
//! Owns how each is started: in the foreground, with folders of its own, on an address that no
//! other test has. Nothing of the machine's own configuration or services is touched.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::client::Stream;
use crate::harness::{Deadline, Home, Server, pause, skipped, until};
use crate::http::{Answer, Conn};
use crate::process::Process;

/// The proxy's ports, on the address of its home: as the files have it, but without TLS; with it;
/// and what the files redirect from.
const PORT: u16 = 8_000;
const TLS_PORT: u16 = 8_443;
const REDIRECTED_PORT: u16 = 8_001;
/// How long it may take to stop by itself, in ms.
const STOP_MS: u64 = 3_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Nginx,
    Haproxy,
    Caddy,
    Apache,
    Varnish,
}

/// What a proxy's file is in docs/deploy, and what of it a test replaces: addresses and paths.
struct Recipe {
    file: &'static str,
    replaced: Vec<(&'static str, String)>,
}

/// A proxy in front of a server.
pub(crate) struct Proxy {
    process: Process,
    address: SocketAddr,
}

impl Proxy {
    /// Starts one in front of a server; None: it is not installed.
    pub(crate) fn start(kind: Kind, home: &Home, server: &Server) -> Option<Proxy> {
        Proxy::before(kind, home, server.http)
    }

    /// The same in front of whatever listens there.
    pub(crate) fn before(kind: Kind, home: &Home, server: SocketAddr) -> Option<Proxy> {
        let program = match kind {
            Kind::Nginx => "nginx",
            Kind::Haproxy => "haproxy",
            Kind::Caddy => "caddy",
            Kind::Apache => "apache2",
            Kind::Varnish => "varnishd",
        };
        let folders = ["/usr/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(program));
        let Some(installed) = folders.into_iter().find(|path| path.exists()) else {
            skipped(&format!("{program} is not installed"));
            return None;
        };
        let folder = home.path().join("proxy");
        fs::create_dir(&folder).expect("a folder can be made");
        let needs_certificate = matches!(kind, Kind::Nginx | Kind::Haproxy | Kind::Caddy);
        if needs_certificate && !certified(home, &folder) {
            skipped("openssl is not installed");
            return None;
        }
        let address = SocketAddr::from((home.ip(), PORT));
        let folder_name = folder.to_str().expect("a plain path").to_owned();
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).expect("a file can be written");
            path.to_str().expect("a plain path").to_owned()
        };
        let text = recipe(kind, &folder_name, server, address).text();
        let args = match kind {
            Kind::Nginx => {
                let main = nginx_main(&folder_name, &write("site.conf", text));
                let main = write("nginx.conf", main);
                let log = format!("{folder_name}/error.log");
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
                let away = deployed("haproxy/greendot-away.http");
                write("away.http", away);
                vec!["-db".into(), "-f".into(), write("haproxy.cfg", text)]
            }
            Kind::Caddy => {
                // Its certificate is here, and nothing else of this machine listens for it. Without
                // TLS too, for the tests that speak it plainly.
                let tls = caddy_site(&folder_name, address);
                let plain = format!("http://:{PORT} {{\n\tbind {}", address.ip());
                let plain = text.replace(&tls, &plain);
                let main = format!("{{\n\tadmin off\n\tauto_https off\n}}\n{text}\n{plain}");
                let file = write("Caddyfile", main);
                let words = format!("run --adapter caddyfile --config {file}");
                words.split(' ').map(str::to_owned).collect()
            }
            Kind::Apache => {
                let main = apache_main(&folder_name, address, &write("site.conf", text));
                vec![
                    "-DFOREGROUND".into(),
                    "-f".into(),
                    write("apache.conf", main),
                ]
            }
            Kind::Varnish => {
                let vcl = write("default.vcl", text);
                let words =
                    format!("-F -j none -s malloc,32m -n {folder_name}/work -a {address} -f {vcl}");
                words.split(' ').map(str::to_owned).collect()
            }
        };
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = home.program(installed.to_str().expect("a plain path"), &args);
        // Where Caddy keeps things.
        command.env("HOME", &folder).env_remove("XDG_DATA_HOME");
        let log = || fs::File::create(folder.join("log")).expect("a file can be made");
        // A group of its own, so that none of its workers outlives the test.
        command.process_group(0).stdout(log()).stderr(log());
        let mut process = Process::start(&mut command);
        until(&format!("{program} listens"), || {
            if process.has_ended() {
                let said = fs::read_to_string(folder.join("log")).unwrap_or_default();
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

    /// Where it speaks TLS, and what is redirected there.
    pub(crate) fn tls(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), TLS_PORT)
    }

    pub(crate) fn redirected(&self) -> Conn {
        Conn::to(SocketAddr::new(self.address.ip(), REDIRECTED_PORT))
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

impl Recipe {
    /// The file with a test's addresses and paths, each of which must stand there.
    fn text(&self) -> String {
        let text = deployed(self.file);
        self.replaced.iter().fold(text, |text, (from, to)| {
            assert!(text.contains(from), "{} has no {from:?}", self.file);
            text.replace(from, to)
        })
    }
}

fn recipe(kind: Kind, folder: &str, server: SocketAddr, address: SocketAddr) -> Recipe {
    let ip = address.ip();
    let redirected = SocketAddr::new(ip, REDIRECTED_PORT);
    let tls = SocketAddr::new(ip, TLS_PORT);
    let behind = ("127.0.0.1:8080", server.to_string());
    let (file, replaced) = match kind {
        Kind::Nginx => {
            // Without TLS too, for the tests that speak it plainly. Each test has an address for
            // itself, and all would share those of IPv6.
            let listen = format!("listen {address};\n    listen {tls} ssl http2;");
            let replaced = vec![
                behind,
                ("listen 80;", format!("listen {redirected};")),
                ("listen 443 ssl http2;", listen),
                ("listen [::]:80;", String::new()),
                ("listen [::]:443 ssl http2;", String::new()),
                ("/etc/nginx/greendot.crt", format!("{folder}/crt")),
                ("/etc/nginx/greendot.key", format!("{folder}/key")),
            ];
            ("nginx/greendot.conf", replaced)
        }
        Kind::Haproxy => {
            let replaced = vec![
                behind,
                ("bind :80", format!("bind {redirected}")),
                ("bind :443 ", format!("bind {address}\n    bind {tls} ")),
                ("/etc/haproxy/greendot.pem", format!("{folder}/pem")),
                (
                    "/etc/haproxy/greendot-away.http",
                    format!("{folder}/away.http"),
                ),
            ];
            ("haproxy/haproxy.cfg", replaced)
        }
        Kind::Caddy => {
            let site = caddy_site(folder, address);
            (
                "caddy/Caddyfile",
                vec![behind, ("presence.example.com {", site)],
            )
        }
        Kind::Apache => {
            let host = format!("<VirtualHost {address}>");
            (
                "apache/greendot.conf",
                vec![behind, ("<VirtualHost *:80>", host)],
            )
        }
        Kind::Varnish => {
            let (ip, port) = (server.ip(), server.port());
            let replaced = vec![
                ("\"127.0.0.1\"", format!("\"{ip}\"")),
                ("\"8080\"", format!("\"{port}\"")),
            ];
            ("varnish/default.vcl", replaced)
        }
    };
    Recipe { file, replaced }
}

/// How the site begins that has a certificate of its own: whatever name it is asked by, and at no
/// other address.
fn caddy_site(folder: &str, address: SocketAddr) -> String {
    let ip = address.ip();
    format!("https://:{TLS_PORT} {{\n\tbind {ip}\n\ttls {folder}/crt {folder}/key")
}

/// A file of docs/deploy.
fn deployed(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/deploy");
    fs::read_to_string(folder.join(file)).expect("it is documented")
}

/// Makes a certificate of the home's address, with its key: `crt`, `key`, and both as `pem`. False:
/// there is no openssl.
fn certified(home: &Home, folder: &Path) -> bool {
    let script = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
         -subj /CN=greendot -addext subjectAltName=IP:{} -keyout key -out crt && cat crt key >pem",
        home.ip()
    );
    let mut command = home.program("sh", &["-c", &script]);
    let made = command.current_dir(folder).output().expect("a shell runs");
    assert!(
        made.status.success() || made.status.code() == Some(127),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    made.status.success()
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
