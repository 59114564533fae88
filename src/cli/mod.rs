//! The command line: what may be typed, and what it asks for.
//!
//! Owns the subcommands and their help. `serve`'s flags are the rows of the knob table. Never runs
//! anything: `main.rs` does.

mod written;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::auth::{LastActive, Scopes};
use crate::config::knobs::{KNOBS, Kind};
use crate::config::value;
use crate::config::{Config, RoleName, Sources};
use crate::tools::endpoint::{AUTHORITIES, Endpoint, Port, Said};
#[cfg(feature = "cluster")]
use crate::tools::fleet;
use crate::tools::{beat, doctor, health, key, online, reload, store, streams, token, top, watch};
use crate::version;
pub use written::{completions, manual};

/// What was asked for.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Run the server, or one half of it.
    Serve(Sources),
    /// Print the effective configuration.
    Config(Sources),
    /// Print the flags as Markdown.
    ConfigMarkdown,
    /// Check the machine against the configuration, and the servers that the variables of the
    /// client commands name.
    Doctor(Sources, doctor::Question),
    /// Send beat datagrams.
    Beat(beat::Options),
    /// Follow users in the terminal.
    Watch(watch::Options),
    /// Make or name a key.
    Key(key::Options),
    /// Have a running node read its files of keys anew.
    Reload(reload::Options),
    /// Make a token, or judge one.
    Token(token::Options),
    /// Look into a data folder, or compact it.
    Store(store::Options),
    /// Show a server's vital rates.
    Top(top::Options),
    /// Show who is connected to a node, or end a stream.
    Streams(streams::Options),
    /// Show who is online.
    Online(online::Options),
    /// Look into a fleet's database.
    #[cfg(feature = "cluster")]
    Fleet(fleet::Options),
    /// Say whether a server serves.
    Health(health::Options),
    /// Print a shell's script.
    Completions(Shell),
    /// Print a manual page.
    Man(Option<String>),
}

const AFTER_HELP: &str = "\
    Every flag of `serve` is also a variable (GREENDOT_BEAT_INTERVAL_MS for --beat-interval-ms) \
    and a key of the file named by --config (beat_interval_ms). Flags win over variables, \
    variables over the file. `greendot config` shows the effective values and where each came \
    from.";

pub fn command() -> Command {
    with_knobs(Command::new("greendot"))
        .version(version::LINE)
        .about(
            "Real-time presence server: who is online, when each was last active, pushed the \
             moment it changes",
        )
        .long_about(
            "Real-time presence server: who is online, when each was last active, pushed the \
             moment it changes.\n\n\
             Without a command it serves.",
        )
        .after_help(AFTER_HELP)
        .args_conflicts_with_subcommands(true)
        .subcommands(
            [
                ("serve", "Run the server (the default)"),
                (
                    "realtime",
                    "Run a real-time node: streams and watches, vouching for its publishers to \
                     presence nodes",
                ),
                (
                    "presence",
                    "Run a presence node: beats, sweep and queries, publishing to real-time nodes",
                ),
            ]
            .map(|(role, about)| {
                with_knobs(Command::new(role))
                    .about(about)
                    .after_help(AFTER_HELP)
            }),
        )
        .subcommand(watch_command())
        .subcommand(beat_command())
        .subcommand(
            with_knobs(Command::new("config"))
                .about("Print the effective configuration and where each value came from")
                .arg(
                    Arg::new("markdown")
                        .long("markdown")
                        .action(ArgAction::SetTrue)
                        .help("Print all flags as Markdown tables instead"),
                ),
        )
        .subcommand(with_knobs(Command::new("doctor")).about(
            "Check this machine's limits against what the configuration needs; takes the flags of \
             serve, realtime and presence",
        )
        .arg(
            Arg::new("streams")
                .long("streams")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..=1 << 40))
                .help(
                    "Say whether this machine holds so many streams, what they take, and which \
                     lines to paste for that",
                ),
        )
        .arg(
            Arg::new("pid")
                .long("pid")
                .value_name("PID")
                .value_parser(value_parser!(i32).range(1..))
                .help(
                    "Judge the limits of this running node; else those of greendot.service if \
                     systemd has it, else this shell's",
                ),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print one object of JSON instead"),
        ))
        .subcommand(key_command())
        .subcommand(reload_command())
        .subcommand(token_command())
        .subcommand(store_command())
        .subcommand(top_command())
        .subcommand(streams_command())
        .subcommand(online_command())
        .subcommands(fleet_command())
        .subcommand(health_command())
        .subcommand(written::completions_command())
        .subcommand(written::man_command())
}

fn watch_command() -> Command {
    Command::new("watch")
        .about(
            "Follow users in the terminal: a live table, or one line per change if the output is \
             no terminal",
        )
        .arg(users_arg().help("Whom to watch"))
        .arg(
            Arg::new("user")
                .long("user")
                .value_name("USER")
                .help("Be online as this user while watching"),
        )
        .arg(path_arg("token-file").help(
            "File with a user's token, for a server that asks for one; read anew for each stream",
        ))
        .arg(http_arg())
        .arg(authorities_arg())
}

fn beat_command() -> Command {
    Command::new("beat")
        .about("Send beat datagrams, as a device without a stream does")
        .arg(
            users_arg()
                .required(false)
                .required_unless_present("device-key-file")
                .help("Who is alive; of a device's key its own user"),
        )
        .arg(
            Arg::new("every")
                .long("every")
                .value_name("TIME")
                .value_parser(|text: &str| {
                    value::millis(text, &(1..=86_400_000)).map_err(|why| format!("it {why}"))
                })
                .help("Keep beating, this often: 10s"),
        )
        .arg(
            Arg::new("count")
                .long("count")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .requires("every")
                .help("Stop after N beats"),
        )
        .arg(
            Arg::new("leave")
                .long("leave")
                .action(ArgAction::SetTrue)
                .conflicts_with("every")
                .help("Say goodbye instead"),
        )
        .arg(endpoint_arg(
            Port::Udp,
            "Where the server receives datagrams",
        ))
        .arg(http_arg().help(format!(
            "Where the same server listens for HTTP: it is asked whether it takes the key, for \
             datagrams are not answered [default: {}, or {} unless --udp is elsewhere]",
            Port::Http.variable(),
            Port::Http.default()
        )))
        .arg(authorities_arg())
        .arg(
            path_arg("key-file")
                .conflicts_with("data-dir")
                .help("File with the fleet key; the first signs"),
        )
        .arg(
            path_arg("device-key-file")
                .conflicts_with("key-file")
                .help("File with what POST /v1/device-key has answered: beat as that device"),
        )
        .arg(
            path_arg("data-dir")
                .default_value("./greendot-data")
                .help("The server's data folder, whose fleet.key is used"),
        )
}

fn key_command() -> Command {
    Command::new("key")
        .about("Print a fresh fleet key")
        .arg(path_arg("id").help("Print the id of each key in this file instead; the first signs"))
        .args_conflicts_with_subcommands(true)
        .subcommand(
            Command::new("new")
                .about(
                    "Print a fresh key of a service, which is shown this once, and below it the \
                     line for the file that --service-keys names on each node",
                )
                .arg(
                    Arg::new("service")
                        .long("service")
                        .value_name("NAME")
                        .required(true)
                        .help("Whose key it is, as the log names it"),
                )
                .arg(
                    Arg::new("scopes")
                        .long("scopes")
                        .value_name("A,B,..")
                        .required(true)
                        .value_parser(|text: &str| text.parse::<Scopes>())
                        .help(
                            "What it may do, of publish, beat, query, revoke, ticket, metrics and \
                             admin",
                        ),
                ),
        )
}

fn reload_command() -> Command {
    Command::new("reload")
        .about(
            "Have a running node read its configuration, its files of keys and its certificate \
             anew, as SIGHUP does; its log says what came of it",
        )
        .arg(
            Arg::new("pid")
                .long("pid")
                .value_name("PID")
                .value_parser(value_parser!(i32).range(1..))
                .conflicts_with_all(["data-dir", "config"])
                .help("The node's process; a real-time node has no data folder to be found by"),
        )
        .arg(
            path_arg("config")
                .conflicts_with("data-dir")
                .help("The node's file of settings, which names its data folder"),
        )
        .arg(
            path_arg("data-dir")
                .default_value("./greendot-data")
                .help("The data folder by which the process is found"),
        )
}

/// The server's variable of the keys: what it says is for `token` too.
const KEYS_VARIABLE: &str = "GREENDOT_JWT_KEYS";

fn token_command() -> Command {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let making = |arg: Arg| arg.conflicts_with("check");
    Command::new("token")
        .about("Make a token for development, or say what one grants or why it is refused")
        .arg(making(text("user", "USER", "Whose token it is")).required_unless_present("check"))
        .arg(
            making(text(
                "watch",
                "ID",
                "Whom its holder may watch: an id, a prefix* or *; repeatable",
            ))
            .action(ArgAction::Append),
        )
        .arg(
            making(text("ttl", "TIME", "For how long it is good"))
                .default_value("1h")
                .value_parser(|text: &str| {
                    value::millis(text, &(1_000..=TTL_MS_MAX)).map_err(|why| format!("it {why}"))
                }),
        )
        .arg(
            making(text(
                "last-active",
                "HOW",
                "How exactly its holder learns when others were last active",
            ))
            .default_value("exact")
            .value_parser(LastActive::ALL.map(|(name, _)| name)),
        )
        .arg(
            making(Arg::new("viewer").long("viewer"))
                .action(ArgAction::SetTrue)
                .help("Its holder only watches, and is never online"),
        )
        .arg(making(text(
            "kid",
            "NAME",
            "Name its key so, as is needed where a node has several",
        )))
        .arg(making(text(
            "jti",
            "TEXT",
            "Its id (jti), by which it can be revoked alone",
        )))
        .arg(text("aud", "TEXT", "Its audience (aud)"))
        .arg(text("iss", "TEXT", "Its issuer (iss)"))
        .arg(path_arg("key").action(ArgAction::Append).help(
            "File with the key: a secret, or a private key in PEM; with --check a secret, \
                     a public key in PEM or a JWK set, repeatable [default: GREENDOT_JWT_KEYS]",
        ))
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Judge the token on standard input instead"),
        )
}

/// Longest life of a token that is made here: 30 days, in ms.
const TTL_MS_MAX: u64 = 30 * 86_400_000;

fn store_command() -> Command {
    Command::new("store")
        .about("Look into a data folder that no server has open, or compact it")
        .arg(
            Arg::new("what")
                .value_name("WHAT")
                .required(true)
                .value_parser(["inspect", "verify", "export", "compact"])
                .help(
                    "inspect: how much it holds; verify: whether all of it is whole; export: each \
                     user as a line of JSON; compact: rewrite it without users who are gone",
                ),
        )
        .arg(
            path_arg("data-dir")
                .default_value("./greendot-data")
                .help("The folder"),
        )
}

fn top_command() -> Command {
    Command::new("top")
        .about("Show a server's vital rates, shard by shard")
        .arg(http_arg().help(format!(
            "Where the server gives its metrics: its --admin address, if it has one [default: {}, \
             or {}]",
            Port::Http.variable(),
            Port::Http.default()
        )))
        .arg(authorities_arg())
        .arg(
            path_arg("service-key")
                .help("File with a service key of the scope metrics, for a node that asks for one"),
        )
        .arg(
            Arg::new("count")
                .long("count")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("Stop after N refreshes"),
        )
        .arg(json_arg(
            "Print a line of JSON each time instead of the table",
        ))
}

fn streams_command() -> Command {
    Command::new("streams")
        .about(
            "Show who is connected to a node: user, address, for how long, how many they watch, \
             how far behind they are, the stream's id and the client's name",
        )
        .arg(
            Arg::new("user")
                .long("user")
                .value_name("USER")
                .help("Only the streams of this user"),
        )
        .arg(json_arg("Print a line of JSON for each stream"))
        .arg(admin_arg().global(true))
        .arg(authorities_arg().global(true))
        .arg(admin_key_arg().global(true))
        .subcommand(
            Command::new("end")
                .about("End a stream; its reader may come back after a second or more")
                .arg(
                    Arg::new("stream")
                        .value_name("ID")
                        .required(true)
                        .help("The stream's id"),
                ),
        )
}

fn online_command() -> Command {
    Command::new("online")
        .about("Show who is online, as everybody is told: not who is invisible")
        .arg(
            Arg::new("prefix")
                .long("prefix")
                .value_name("TEXT")
                .help("Only users whose ids begin so"),
        )
        .arg(json_arg("Print a line of JSON for each user"))
        .arg(admin_arg())
        .arg(authorities_arg())
        .arg(admin_key_arg())
}

/// None: this program was built without.
#[cfg(not(feature = "cluster"))]
fn fleet_command() -> Option<Command> {
    None
}

#[cfg(feature = "cluster")]
fn fleet_command() -> Option<Command> {
    let fleet = Command::new("fleet")
        .about(
            "Look into a fleet's database, and change nothing; exits 1 if something is wrong with \
             the fleet, or if nobody answers",
        )
        .arg(
            Arg::new("what")
                .value_name("WHAT")
                .required(true)
                .value_parser(["status", "nodes", "partitions", "audit"])
                .help(
                    "status: the whole in a few lines; nodes: each with its addresses, version and \
                     the ages of its leases; partitions: each with its server, users and bytes; \
                     audit: reads every user and lists where nodes' counts differ",
                ),
        )
        .arg(
            Arg::new("cluster")
                .long("cluster")
                .value_name("URL")
                .help(format!(
                    "A server of the database, as serve --cluster names it [default: {DATABASE}]"
                )),
        )
        .arg(path_arg("cluster-password-file").help(format!(
            "File with its password, if that is not in the URL [default: {DATABASE}_PASSWORD_FILE]"
        )))
        .arg(path_arg("tls-ca").help(format!(
            "PEM file of the authority that issued the certificates of rediss:// [default: \
             {AUTHORITIES}]"
        )))
        .arg(json_arg("Print lines of JSON instead"));
    Some(fleet)
}

/// The variable of `serve --cluster`: what it says is for `fleet` too.
#[cfg(feature = "cluster")]
const DATABASE: &str = "GREENDOT_CLUSTER";

#[cfg(feature = "cluster")]
fn fleet_options(
    given: &ArgMatches,
    variables: &[(OsString, OsString)],
) -> Result<fleet::Options, String> {
    let variable = |name: &str| {
        let set = variables.iter().find(|(known, _)| known == name);
        set.map(|(_, text)| text.clone())
            .filter(|text| !text.is_empty())
    };
    let flag = given.get_one::<String>("cluster").cloned();
    let named = flag.or_else(|| {
        let set = variable(DATABASE);
        set.map(|text| text.to_string_lossy().into_owned())
    });
    let cluster = named.ok_or_else(|| {
        format!("name the fleet's database with --cluster redis://HOST:PORT, or in {DATABASE}")
    })?;
    let password_file = given.get_one::<PathBuf>("cluster-password-file").cloned();
    let password_variable = variable(&format!("{DATABASE}_PASSWORD_FILE"));
    Ok(fleet::Options {
        cluster,
        password_file: password_file.or(password_variable.map(PathBuf::from)),
        authorities: authorities(given, variables),
        json: given.get_flag("json"),
        what: match given.get_one::<String>("what").map(String::as_str) {
            Some("nodes") => fleet::What::Nodes,
            Some("partitions") => fleet::What::Partitions,
            Some("audit") => fleet::What::Audit,
            _ => fleet::What::Status,
        },
    })
}

fn json_arg(help: &'static str) -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help(help)
}

fn admin_arg() -> Arg {
    http_arg().help(format!(
        "Where the node takes operators' calls: its --admin address, if it has one [default: {}, \
         or {}]",
        Port::Http.variable(),
        Port::Http.default()
    ))
}

fn admin_key_arg() -> Arg {
    path_arg("service-key")
        .help("File with a service key of the scope admin, for a node that asks for one")
}

fn health_command() -> Command {
    Command::new("health")
        .about(
            "Ask a server whether it serves: exits 0 if it does, and 1 if it drains or does not \
             answer",
        )
        .arg(http_arg())
        .arg(authorities_arg())
}

fn users_arg() -> Arg {
    Arg::new("users")
        .value_name("USER")
        .required(true)
        .num_args(1..)
}

fn http_arg() -> Arg {
    endpoint_arg(Port::Http, "Where the server listens for HTTP")
}

fn authorities_arg() -> Arg {
    path_arg("tls-ca").help(format!(
        "PEM file of the authority that issued the certificate of a server at https:// [default: \
         {AUTHORITIES}]"
    ))
}

/// The variable is not told to clap, which would read it from the environment of this process.
fn endpoint_arg(port: Port, help: &str) -> Arg {
    let (variable, default) = (port.variable(), port.default());
    Arg::new(port.flag())
        .long(port.flag())
        .value_name("HOST:PORT")
        .value_parser(move |text: &str| Endpoint::parse(text, port, Said::Flag))
        .help(format!("{help} [default: {variable}, or {default}]"))
}

fn path_arg(name: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
}

fn with_knobs(mut command: Command) -> Command {
    command = command.arg(path_arg("config").help("TOML file of settings"));
    let defaults = Config::default();
    for knob in KNOBS {
        // Told here and not to clap, which could not say that nobody set it.
        let help = match (knob.get)(&defaults) {
            Some(value) if !value.is_empty() => format!("{} [default: {value}]", knob.doc),
            _ => knob.doc.into(),
        };
        let mut arg = Arg::new(knob.name)
            .long(knob.name)
            .value_name(knob.kind.placeholder());
        arg = arg.help(help).help_heading(knob.group);
        if knob.kind == Kind::Switch {
            arg = arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true");
        }
        if knob.kind == Kind::List {
            arg = arg.action(ArgAction::Append);
        }
        command = command.arg(arg);
    }
    command
}

/// What `matches` of [`command`] ask for; an error names the variable that can not be meant.
/// `variables` is the environment.
pub fn ask(matches: &ArgMatches, variables: Vec<(OsString, OsString)>) -> Result<Ask, String> {
    Ok(match matches.subcommand() {
        Some(("config", given)) if given.get_flag("markdown") => Ask::ConfigMarkdown,
        Some(("config", given)) => Ask::Config(of_any_role(sources(given, variables))),
        Some(("doctor", given)) => {
            let named = [Port::Http, Port::Udp].map(|port| named(port, &variables));
            let named = named.into_iter().filter_map(Result::transpose);
            let named = named.collect::<Result<_, String>>()?;
            let question = doctor::Question {
                named,
                streams: given.get_one("streams").copied(),
                pid: given.get_one("pid").copied(),
                json: given.get_flag("json"),
            };
            Ask::Doctor(of_any_role(sources(given, variables)), question)
        }
        Some(("serve", given)) => Ask::Serve(sources(given, variables)),
        Some((name @ ("realtime" | "presence"), given)) => Ask::Serve(Sources {
            role: Some(if name == "realtime" {
                RoleName::Realtime
            } else {
                RoleName::Presence
            }),
            ..sources(given, variables)
        }),
        Some(("beat", given)) => Ask::Beat(beat::Options {
            users: users(given),
            every_ms: given.get_one("every").copied(),
            count: given.get_one("count").copied(),
            leave: given.get_flag("leave"),
            udp: endpoint(given, Port::Udp, &variables)?,
            http: http_beside_udp(given, &variables)?,
            key_file: given
                .get_one::<PathBuf>("key-file")
                .cloned()
                .unwrap_or_else(|| {
                    let folder = given
                        .get_one::<PathBuf>("data-dir")
                        .expect("it has a default");
                    folder.join("fleet.key")
                }),
            device_key_file: given.get_one("device-key-file").cloned(),
        }),
        Some(("watch", given)) => Ask::Watch(watch::Options {
            users: users(given),
            user: given.get_one("user").cloned(),
            token_file: given.get_one("token-file").cloned(),
            http: endpoint(given, Port::Http, &variables)?,
        }),
        Some(("key", given)) => Ask::Key(key_options(given)),
        Some(("reload", given)) => {
            let path = |name: &str| given.get_one::<PathBuf>(name).cloned();
            Ask::Reload(match (given.get_one("pid"), path("config")) {
                (Some(pid), _) => reload::Options::Pid(*pid),
                (None, Some(file)) => reload::Options::Config(Sources {
                    config_file: Some(file),
                    variables,
                    ..Sources::default()
                }),
                (None, None) => reload::Options::Folder(path("data-dir").unwrap_or_default()),
            })
        }
        Some(("token", given)) => Ask::Token(token_options(given, &variables)?),
        Some(("store", given)) => Ask::Store(store::Options {
            what: match given.get_one::<String>("what").map(String::as_str) {
                Some("verify") => store::What::Verify,
                Some("export") => store::What::Export,
                Some("compact") => store::What::Compact,
                _ => store::What::Inspect,
            },
            dir: given
                .get_one::<PathBuf>("data-dir")
                .cloned()
                .unwrap_or_default(),
        }),
        Some(("top", given)) => Ask::Top(top::Options {
            http: endpoint(given, Port::Http, &variables)?,
            service_key: given.get_one("service-key").cloned(),
            count: given.get_one("count").copied(),
            json: given.get_flag("json"),
        }),
        Some(("streams", given)) => {
            // Where it is said, before `end` or behind it, makes no difference.
            let end = given.subcommand_matches("end");
            let all = end.unwrap_or(given);
            Ask::Streams(streams::Options {
                http: endpoint(all, Port::Http, &variables)?,
                service_key: all.get_one("service-key").cloned(),
                what: match end.and_then(|end| end.get_one("stream")) {
                    Some(stream) => streams::What::End(String::clone(stream)),
                    None => streams::What::List {
                        user: given.get_one("user").cloned(),
                        json: given.get_flag("json"),
                    },
                },
            })
        }
        Some(("online", given)) => Ask::Online(online::Options {
            http: endpoint(given, Port::Http, &variables)?,
            service_key: given.get_one("service-key").cloned(),
            prefix: given.get_one("prefix").cloned(),
            json: given.get_flag("json"),
        }),
        #[cfg(feature = "cluster")]
        Some(("fleet", given)) => Ask::Fleet(fleet_options(given, &variables)?),
        Some(("health", given)) => Ask::Health(health::Options {
            http: endpoint(given, Port::Http, &variables)?,
        }),
        Some(("completions", given)) => written::completions_asked(given),
        Some(("man", given)) => written::man_asked(given),
        _ => Ask::Serve(sources(matches, variables)),
    })
}

fn key_options(given: &ArgMatches) -> key::Options {
    match given.subcommand_matches("new") {
        Some(new) => key::Options::Service {
            name: new.get_one("service").cloned().expect("it is required"),
            scopes: new.get_one("scopes").copied().expect("it is required"),
        },
        None => match given.get_one::<PathBuf>("id") {
            Some(path) => key::Options::IdsOf(path.clone()),
            None => key::Options::Fleet,
        },
    }
}

fn token_options(
    given: &ArgMatches,
    variables: &[(OsString, OsString)],
) -> Result<token::Options, String> {
    let text = |name: &str| given.get_one::<String>(name).cloned();
    let (audience, issuer) = (text("aud"), text("iss"));
    let mut keys: Vec<PathBuf> = given
        .get_many::<PathBuf>("key")
        .map(|keys| keys.cloned().collect())
        .unwrap_or_default();
    if keys.is_empty() {
        let set = variables.iter().find(|(name, _)| name == KEYS_VARIABLE);
        let files = set
            .map(|(_, files)| files.to_string_lossy())
            .unwrap_or_default();
        keys = value::list(&files).into_iter().map(PathBuf::from).collect();
    }
    if keys.is_empty() {
        return Err(format!(
            "name the key's file with --key, or in {KEYS_VARIABLE}"
        ));
    }
    if given.get_flag("check") {
        return Ok(token::Options::Check(token::Check {
            keys,
            audience,
            issuer,
        }));
    }
    let [key] = <[PathBuf; 1]>::try_from(keys)
        .map_err(|_| "a token is signed by one key; name one file with --key")?;
    Ok(token::Options::Make(token::Make {
        user: text("user").unwrap_or_default(),
        watch: given
            .get_many::<String>("watch")
            .map(|entries| entries.cloned().collect()),
        ttl_ms: given.get_one("ttl").copied().expect("it has a default"),
        last_active: text("last-active")
            .and_then(|word| LastActive::parse(&word))
            .unwrap_or_default(),
        viewer: given.get_flag("viewer"),
        audience,
        issuer,
        id: text("jti"),
        kid: text("kid"),
        key,
    }))
}

fn users(given: &ArgMatches) -> Vec<String> {
    given
        .get_many::<String>("users")
        .map(|users| users.cloned().collect())
        .unwrap_or_default()
}

/// As the flag says, or else the variable.
fn endpoint(
    given: &ArgMatches,
    port: Port,
    variables: &[(OsString, OsString)],
) -> Result<Endpoint, String> {
    let found = match given.get_one::<Endpoint>(port.flag()) {
        Some(endpoint) => endpoint.clone(),
        None => {
            let named = named(port, variables)?;
            named.unwrap_or_else(|| Endpoint::default_of(port))
        }
    };
    Ok(found.believed_by(authorities(given, variables)))
}

/// The file of those by whom servers are believed: as the flag says, or else the variable.
fn authorities(given: &ArgMatches, variables: &[(OsString, OsString)]) -> Option<PathBuf> {
    let flag = given.try_get_one::<PathBuf>("tls-ca").ok().flatten();
    flag.cloned().or_else(|| named_authorities(variables))
}

fn named_authorities(variables: &[(OsString, OsString)]) -> Option<PathBuf> {
    let variable = variables.iter().find(|(name, _)| name == AUTHORITIES);
    let path = variable
        .map(|(_, path)| path)
        .filter(|path| !path.is_empty());
    path.map(PathBuf::from)
}

/// Where the server listens for HTTP that receives the datagrams. None: they go where nobody has
/// said what else is there.
fn http_beside_udp(
    given: &ArgMatches,
    variables: &[(OsString, OsString)],
) -> Result<Option<Endpoint>, String> {
    let udp = endpoint(given, Port::Udp, variables)?;
    let http = endpoint(given, Port::Http, variables)?;
    Ok((udp.is_default() || !http.is_default()).then_some(http))
}

/// The server that a variable names. Set to nothing it is unset, as shells and unit files have it.
fn named(port: Port, variables: &[(OsString, OsString)]) -> Result<Option<Endpoint>, String> {
    let variable = port.variable();
    let set = variables.iter().find(|(name, _)| name == variable);
    set.map(|(_, text)| text.to_string_lossy())
        .filter(|text| !text.is_empty())
        .map(|text| Endpoint::parse(&text, port, Said::Variable))
        .map(|found| found.map(|endpoint| endpoint.believed_by(named_authorities(variables))))
        .transpose()
        .map_err(|why| format!("{variable}: {why}"))
}

/// For commands that look at a configuration, whichever half it is for.
fn of_any_role(sources: Sources) -> Sources {
    Sources {
        role: None,
        ..sources
    }
}

fn sources(given: &ArgMatches, variables: Vec<(OsString, OsString)>) -> Sources {
    // A list's flag may be repeated.
    let flag = |name: &str| {
        let values: Vec<&str> = given
            .get_many::<String>(name)?
            .map(String::as_str)
            .collect();
        Some((name.to_owned(), values.join(",")))
    };
    Sources {
        role: Some(RoleName::All),
        config_file: given.get_one("config").cloned(),
        flags: KNOBS.iter().filter_map(|knob| flag(knob.name)).collect(),
        variables,
    }
}

#[cfg(test)]
mod tests;
