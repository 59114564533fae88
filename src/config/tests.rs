use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;

use std::ffi::OsString;

use super::knobs::{KNOBS, Kind};
use super::*;

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|&(name, value)| (name.into(), value.into()))
        .collect()
}

fn load_from(
    file: Option<&str>,
    variables: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Loaded, Vec<String>> {
    let mut sources = Sources {
        role: Some(RoleName::All),
        config_file: None,
        flags: pairs(flags),
        variables: variables
            .iter()
            .map(|(name, text)| (name.into(), text.into()))
            .collect(),
    };
    let mut named = tempfile::NamedTempFile::new().unwrap();
    if let Some(text) = file {
        named.write_all(text.as_bytes()).unwrap();
        sources.config_file = Some(named.path().into());
    }
    // The file's name differs from run to run; its faults are compared without it.
    let prefix = named.path().display().to_string();
    load(&sources).map_err(|faults| {
        faults
            .iter()
            .map(|fault| fault.replace(&prefix, "FILE"))
            .collect()
    })
}

fn origin_of(loaded: &Loaded, name: &str) -> String {
    let row = KNOBS.iter().position(|knob| knob.name == name).unwrap();
    loaded.origins[row].to_string()
}

#[test]
fn defaults_pass() {
    let loaded = load_from(None, &[("PATH", "/bin"), ("GREENDOTS", "no matter")], &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(
        loaded
            .origins
            .iter()
            .all(|origin| *origin == Origin::Default)
    );
    assert_eq!(
        loaded.config.key_path(),
        PathBuf::from("./greendot-data/fleet.key")
    );
    assert!(loaded.config.shard_count() >= 1);
}

#[test]
fn flags_over_variables_over_file() {
    let file = "# mine\nretry_ms = 1\ndrain_ms = \"2s\"\nlinger_ms = 3\n";
    let variables = [("GREENDOT_DRAIN_MS", "20"), ("GREENDOT_LINGER_MS", "30")];
    let loaded = load_from(Some(file), &variables, &[("linger-ms", "300ms")]).unwrap();
    let settings = &loaded.config.settings;
    assert_eq!(
        (settings.retry_ms, settings.drain_ms, settings.linger_ms),
        (1, 20, 300)
    );
    assert!(origin_of(&loaded, "retry-ms").ends_with(":2"));
    let written = "conns_max = 600_000\nmailbox_max = 0x10\nkey_file = 'a'\n";
    let loaded_too = load_from(Some(written), &[], &[]).unwrap();
    assert_eq!(
        (
            loaded_too.config.settings.conns_max,
            loaded_too.config.settings.mailbox_max
        ),
        (600_000, 16)
    );
    assert_eq!(origin_of(&loaded, "drain-ms"), "GREENDOT_DRAIN_MS");
    assert_eq!(origin_of(&loaded, "linger-ms"), "--linger-ms");
    assert_eq!(origin_of(&loaded, "http"), "default");
}

#[test]
fn the_variable_names_the_file_and_the_flag_wins() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"shards = 3").unwrap();
    let path = file.path().to_str().unwrap();
    let loaded = load_from(None, &[(CONFIG_VARIABLE, path)], &[]).unwrap();
    assert_eq!(loaded.config.shard_count(), 3);
    let loaded = load_from(Some("shards = \"auto\""), &[(CONFIG_VARIABLE, path)], &[]).unwrap();
    assert_eq!(loaded.config.shards, None);
}

#[test]
fn a_variable_set_to_nothing_names_no_file() {
    assert_eq!(
        load_from(None, &[(CONFIG_VARIABLE, "")], &[])
            .unwrap()
            .config,
        Config::default()
    );
}

/// As Kubernetes sets them in every pod beside a service that is named greendot, or
/// greendot-realtime.
#[test]
fn variables_of_a_service_are_no_settings() {
    let set = [
        ("GREENDOT_SERVICE_HOST", "10.0.0.1"),
        ("GREENDOT_SERVICE_PORT", "8080"),
        ("GREENDOT_SERVICE_PORT_HTTP", "8080"),
        ("GREENDOT_PORT", "tcp://10.0.0.1:8080"),
        ("GREENDOT_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("GREENDOT_PORT_8080_TCP_PROTO", "tcp"),
        ("GREENDOT_PORT_8081_UDP_ADDR", "10.0.0.1"),
        ("GREENDOT_REALTIME_SERVICE_HOST", "10.0.0.2"),
        ("GREENDOT_REALTIME_PORT", "udp://10.0.0.2:8080"),
        ("GREENDOT_REALTIME_PORT_8080_TCP_PORT", "8080"),
        ("GREENDOT_DRAIN_MS", "7"),
    ];
    let loaded = load_from(None, &set, &[]).unwrap();
    assert_eq!(loaded.config.settings.drain_ms, 7);
    // What a person may have meant is still told.
    for (name, text) in [
        ("GREENDOT_PORT", "8080"),
        ("GREENDOT_PORT_HTTP", "8080"),
        ("GREENDOT_SERVICE", "a"),
    ] {
        let faults = load_from(None, &[(name, text)], &[]).unwrap_err();
        assert!(
            faults[0].starts_with(&format!("{name}: no such variable")),
            "{faults:?}"
        );
    }
}

#[test]
fn variables_of_the_client_commands_are_no_settings() {
    let set = [("GREENDOT_URL", "x"), ("GREENDOT_BEAT_TO", "y")];
    let loaded = load_from(None, &set, &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    let faults = load_from(None, &[("GREENDOT_BEATTO", "y")], &[]).unwrap_err();
    assert_eq!(
        faults,
        ["GREENDOT_BEATTO: no such variable; did you mean GREENDOT_BEAT_TO?"]
    );
}

#[test]
fn a_string_without_quotes_is_told_so() {
    for (line, right) in [
        ("http = 127.0.0.1:8080", "http = \"127.0.0.1:8080\""),
        ("http=[::1]:8080", ""),
        (
            "data_dir = /var/lib/greendot # here",
            "data_dir = \"/var/lib/greendot\"",
        ),
        ("log_format = json", "log_format = \"json\""),
        ("offline_after_ms = 25s", "offline_after_ms = \"25s\""),
        ("shards = auto", "shards = \"auto\""),
        (
            "cors_origins = https://a.example",
            "cors_origins = [\"https://a.example\"]",
        ),
        // Not the quotes are missing.
        ("http = \"127.0.0.1:8080", ""),
        ("log_format = jason", ""),
        ("htp = 127.0.0.1:8080", ""),
    ] {
        let file = format!("# mine\n\n{line}\n\nretry_ms = 1\n");
        let faults = load_from(Some(&file), &[], &[]).unwrap_err();
        assert!(
            faults.len() == 1 && faults[0].starts_with("FILE:3: not TOML: "),
            "{line}: {faults:?}"
        );
        let hint = faults[0]
            .split_once("; write ")
            .map_or("", |(_, hint)| hint);
        assert_eq!(hint, right, "{line}: {faults:?}");
    }
}

#[test]
fn a_key_that_stands_twice_is_named() {
    for (file, fault) in [
        (
            "retry_ms = 1\nusers_max = 2\n\nretry_ms = 3\n",
            "FILE:4: retry_ms: set in line 1 already; leave one of them",
        ),
        (
            "users_max=1 # here\n  users_max =2",
            "FILE:2: users_max: set in line 1 already; leave one of them",
        ),
        (
            "http = \"a\"\n[http]\n",
            "FILE:2: http: set in line 1 already; leave one of them",
        ),
        (
            "# drain_ms = 1\n\"drain_ms\" = 1\ndrain_ms = 2\n",
            "FILE:3: drain_ms: set in line 2 already; leave one of them",
        ),
    ] {
        let faults = load_from(Some(file), &[], &[]).unwrap_err();
        assert_eq!(faults, [fault], "{file}");
    }
}

#[test]
fn a_variable_that_is_not_utf_8_is_refused() {
    let variables = |name: &[u8]| {
        let value = OsString::from_vec(b"/srv/\xe9t\xe9".into());
        let sources = Sources {
            variables: vec![(OsString::from_vec(name.into()), value)],
            ..Sources::default()
        };
        load(&sources).map(|loaded| loaded.config)
    };
    assert_eq!(
        variables(b"GREENDOT_DATA_DIR"),
        Err(vec![
            "GREENDOT_DATA_DIR: \"/srv/\\xE9t\\xE9\" is not UTF-8; write it in UTF-8".into()
        ])
    );
    assert_eq!(variables(b"OTHER_\xe9"), Ok(Config::default()));
}

#[test]
fn what_is_unknown_is_named_with_its_nearest() {
    let file = "offline_after = 1\n\n[http]\nport = 1\n";
    let variables = [("GREENDOT_BEAT_INTERVAL", "1"), ("GREENDOT_XQZ", "1")];
    assert_eq!(
        load_from(Some(file), &variables, &[]).unwrap_err(),
        [
            "FILE:1: offline_after: no such key; did you mean offline_after_ms?",
            "FILE:3: http: takes a string",
            "GREENDOT_BEAT_INTERVAL: no such variable; did you mean GREENDOT_BEAT_INTERVAL_MS?",
            "GREENDOT_XQZ: no such variable; `greendot config` lists all",
        ]
    );
}

#[test]
fn what_is_wrong_is_named_with_what_is_allowed() {
    let file = "beat_interval_ms = 1.5\nhttp = \"localhost:80\"\ncors_origins = [\"http://a\", \
                1]\ninsecure = \"true\"\n";
    let found = load_from(
        Some(file),
        &[("GREENDOT_SHARDS", "0")],
        &[("log-format", "xml")],
    );
    assert_eq!(
        found.unwrap_err(),
        [
            "FILE:1: beat_interval_ms: takes a whole number, or a string with a unit",
            "FILE:2: http: \"localhost:80\" is not an IP address and a port; write 127.0.0.1:8080 \
             or [::1]:8080 (port 0: the kernel picks one)",
            "FILE:3: cors_origins: takes an array of strings",
            "FILE:4: insecure: takes true or false",
            "GREENDOT_SHARDS: \"0\" is not a whole number from 1 to 256, nor auto",
            "--log-format: \"xml\" is neither human nor json",
        ]
    );
}

#[test]
fn files_that_are_none() {
    assert_eq!(
        load_from(Some("a = 1\nb = = 2\n"), &[], &[])
            .unwrap_err()
            .len(),
        1
    );
    assert!(
        load_from(Some("a = 1\nb = = 2\n"), &[], &[]).unwrap_err()[0]
            .starts_with("FILE:2: not TOML: ")
    );
    let sources = Sources {
        config_file: Some("/nonexistent/x.toml".into()),
        ..Sources::default()
    };
    assert!(load(&sources).unwrap_err()[0].starts_with("/nonexistent/x.toml: can not be read: "));
}

#[test]
fn only_loopback_without_insecure() {
    for address in [
        "0.0.0.0:80",
        "192.0.2.1:0",
        "[::]:80",
        "[::ffff:192.0.2.1]:80",
    ] {
        let found = load_from(None, &[], &[("http", address)]).unwrap_err();
        assert!(
            found[0].starts_with(&format!(
                "http is {address}, which other machines may reach"
            )),
            "{found:?}"
        );
        let insecure = ("insecure", "true");
        assert!(load_from(None, &[], &[("http", address), insecure]).is_ok());
        let keys = ("jwt-keys", "app.secret,web.pem");
        let found = load_from(None, &[], &[("http", address), keys]).unwrap_err();
        assert!(found[0].contains("--admin") && found[0].contains("--insecure"));
        let admin = ("admin", "127.0.0.1:0");
        assert!(load_from(None, &[], &[("http", address), keys, admin]).is_ok());
        assert!(load_from(None, &[], &[("http", address), admin]).is_err());
    }
    // Services alone are asked for on a presence node, which holds no streams, and nowhere else.
    let services = ("service-keys", "services");
    let split = [("key-file", "k"), ("realtime", "http://a:1"), services];
    for (role, more, is_ok) in [
        (RoleName::All, &[services][..], false),
        (RoleName::Presence, &split, true),
    ] {
        let flags = [&[("http", "0.0.0.0:80"), ("udp", "0.0.0.0:81")], more].concat();
        let sources = Sources {
            role: Some(role),
            flags: pairs(&flags),
            ..Sources::default()
        };
        assert_eq!(load(&sources).is_ok(), is_ok, "{role:?}");
    }
    for address in [
        "127.0.0.1:0",
        "127.9.9.9:80",
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
    ] {
        assert!(
            load_from(None, &[], &[("udp", address)]).is_ok(),
            "{address}"
        );
    }
}

#[test]
fn cross_field_faults_are_told() {
    let found = load_from(None, &[], &[("beat-interval-ms", "20s")]).unwrap_err();
    assert!(
        found.len() == 1 && found[0].starts_with("offline-after-ms (25000) is less than twice"),
        "{found:?}"
    );
}

#[test]
fn where_operators_calls_are_served() {
    let admin = Some("127.0.0.1:9090".parse().unwrap());
    for (http, admin, insecure, public) in [
        ("127.0.0.1:8080", None, false, true),
        ("127.0.0.1:8080", admin, true, false),
        ("0.0.0.0:8080", None, true, true),
        ("0.0.0.0:8080", None, false, false),
        ("0.0.0.0:8080", admin, true, false),
    ] {
        let config = Config {
            http: http.parse().unwrap(),
            admin,
            insecure,
            ..Config::default()
        };
        assert_eq!(config.serves_operators_publicly(), public, "{http}");
    }
    let found = |flags: &[(&str, &str)]| load_from(None, &[], flags).unwrap_err();
    assert_eq!(
        found(&[("admin-metrics-open", "true")]),
        ["admin-metrics-open is set, but no listener for operators; set --admin too"]
    );
    assert_eq!(
        found(&[("admin", "127.0.0.1:8080")]),
        ["admin and http are both 127.0.0.1:8080; give operators a port of their own"]
    );
    let both = [("admin", "127.0.0.1:0"), ("http", "127.0.0.1:0")];
    assert!(load_from(None, &[], &both).is_ok());
}

/// What stays on the one listener is said at each start, and what is served nowhere.
#[test]
fn what_is_seldom_meant_is_said() {
    let said = |role, flags: &[(&str, &str)]| {
        let sources = Sources {
            role: Some(role),
            flags: pairs(flags),
            ..Sources::default()
        };
        load(&sources).unwrap().config.warnings().join("\n")
    };
    let (http, insecure) = (("http", "0.0.0.0:0"), ("insecure", "true"));
    let all = said(RoleName::All, &[http, insecure]);
    assert!(
        all.contains("the dashboard, the demo and all operators' calls stay on the one listener")
    );
    let apart = said(RoleName::All, &[http, insecure, ("admin", "127.0.0.1:0")]);
    assert!(apart.starts_with("insecure is set") && !apart.contains("dashboard"));
    let split = [
        ("key-file", "k"),
        ("realtime", "http://a:1"),
        ("jwt-keys", "k"),
    ];
    let presence = said(RoleName::Presence, &[&[http][..], &split].concat());
    assert!(presence.contains("served nowhere; give them a listener of their own with --admin"));
    let keyless = said(RoleName::All, &[("admin", "0.0.0.0:0")]);
    assert!(keyless.contains("no service keys are named"), "{keyless}");
    let keys = ("service-keys", "services");
    let plain = said(RoleName::All, &[("admin", "0.0.0.0:0"), keys]);
    assert!(plain.starts_with("admin is 0.0.0.0:0, which other machines may reach, and does not"));
    assert!(plain.contains("set --admin-tls, with --tls-cert and --tls-key"));
    let files = [("tls-cert", "a"), ("tls-key", "b"), ("admin-tls", "true")];
    let sealed = [&[("admin", "0.0.0.0:0"), keys][..], &files].concat();
    assert_eq!(said(RoleName::All, &sealed), "");
}

#[test]
fn tls_takes_a_certificate_and_a_key() {
    let found = |flags: &[(&str, &str)]| load_from(None, &[], flags).unwrap_err();
    let missing = |name| {
        format!(
            "{name} is not set, and https needs a certificate and its key; name their PEM files \
             with --tls-cert and --tls-key"
        )
    };
    let https = ("https", "127.0.0.1:8443");
    assert_eq!(found(&[https]), ["tls-cert", "tls-key"].map(missing));
    let files = [("tls-cert", "a.crt"), ("tls-key", "a.key")];
    assert_eq!(found(&[https, files[0]]), [missing("tls-key")]);
    let useless = found(&files[..1]);
    assert!(useless[0].starts_with("tls-cert is set, but nothing speaks TLS; set --https too"));
    let all = |more: &[(&str, &str)]| load_from(None, &[], &[&files[..], &[https], more].concat());
    let config = all(&[("tls-min", "1.2")]).unwrap().config;
    assert!(config.tls.is_on() && config.is_local());
    assert_eq!(config.tls.min, TlsVersion::V1_2);
    assert_eq!(config.tls.handshakes_max, 1_024);
    assert!(all(&[("tls-min", "1.1")]).unwrap_err()[0].contains("is neither 1.2 nor 1.3"));
    let twice = all(&[("http", "127.0.0.1:8443")]).unwrap_err();
    assert!(twice[0].starts_with("https and http are both 127.0.0.1:8443"));
    assert!(all(&[("admin-tls", "true")]).unwrap_err()[0].starts_with("admin-tls is set, but no"));
    let split = |node: &str, more: &[(&str, &str)]| {
        let flags = [&[("key-file", "k"), ("realtime", node)][..], more].concat();
        let sources = Sources {
            role: Some(RoleName::Presence),
            flags: pairs(&flags),
            ..Sources::default()
        };
        load(&sources).map(drop)
    };
    let ca = [("tls-ca", "ca.crt")];
    assert!(split("https://a:1", &ca).is_ok() && split("http://a:1", &[]).is_ok());
    let unknown = split("https://a:1", &[]).unwrap_err();
    assert!(unknown[0].starts_with("tls-ca is not set, and a node is named with https://"));
    let useless = split("http://a:1", &ca).unwrap_err();
    assert!(
        useless[0].starts_with("tls-ca is set, but no node and no webhook is named with https://")
    );
    // Who listens for other machines there has users prove who they are, and operators apart.
    let open = [files[0], files[1], ("https", "0.0.0.0:8443")];
    let faults = found(&open);
    assert!(faults[0].starts_with("https is 0.0.0.0:8443, which other machines may reach"));
    assert!(faults[1].contains("operators' calls"), "{faults:?}");
    let apart = [("jwt-keys", "k"), ("admin", "127.0.0.1:9090")];
    let config = load_from(None, &[], &[&open[..], &apart].concat()).unwrap();
    assert!(!config.config.is_local() && !config.config.serves_operators_publicly());
}

#[test]
fn what_tokens_must_say_takes_keys() {
    let flags = [("jwt-aud", "greendot"), ("auth-cookie", "__Host-t")];
    let fault =
        |name| format!("{name} is set, but no key of tokens; name their keys with --jwt-keys");
    let found = load_from(None, &[], &flags).unwrap_err();
    assert_eq!(found, [fault("jwt-aud"), fault("auth-cookie")]);
    for (name, text) in [
        ("auth-cookie", "a b"),
        ("auth-cookie", "a=b"),
        ("auth-cookie", "greendot-session"),
        ("jwt-iss", ""),
        ("watch-default", "all"),
        ("token-ttl-max", "10"),
    ] {
        assert!(
            load_from(None, &[], &[(name, text)]).is_err(),
            "{name} {text}"
        );
    }
}

#[test]
fn what_is_printed_loads_again() {
    let flags = [
        ("http", "[::1]:0"),
        ("cors-origins", "https://a.b,http://c:1"),
        ("shards", "7"),
        ("key-file", "a \"b\\.key"),
        ("insecure", "true"),
        ("jwt-keys", "app.secret,web.pem"),
        ("jwt-aud", "greendot"),
        ("watch-default", "everybody"),
        ("token-ttl-max", "1h"),
        ("service-keys", "services"),
        ("admin", "127.0.0.1:9090"),
        ("admin-metrics-open", "true"),
    ];
    let loaded = load_from(None, &[], &flags).unwrap();
    let again = load_from(Some(&loaded.to_toml()), &[], &[]).unwrap();
    assert_eq!(again.config, loaded.config);
    let defaults = load_from(None, &[], &[]).unwrap();
    assert!(defaults.to_toml().contains("\n# key_file is unset"));
    assert_eq!(
        load_from(Some(&defaults.to_toml()), &[], &[])
            .unwrap()
            .config,
        Config::default()
    );
}

#[test]
fn rows_are_sound() {
    let names: BTreeSet<_> = KNOBS.iter().map(|knob| knob.name).collect();
    assert_eq!(names.len(), KNOBS.len());
    let defaults = Config::default();
    for knob in KNOBS {
        assert!(
            knob.doc.len() > 20 && !knob.doc.ends_with('.') && !knob.doc.contains('|'),
            "{}",
            knob.name
        );
        // What a getter gives, its setter takes; and a row reads what it writes.
        if let Some(value) = (knob.get)(&defaults) {
            let mut config = Config::default();
            (knob.set)(&mut config, &value).unwrap();
            assert_eq!(config, defaults, "{}", knob.name);
        }
        let other = match knob.kind {
            Kind::Address => "127.0.0.2:9",
            Kind::Path => "elsewhere",
            Kind::Switch => "true",
            Kind::List if knob.name == "presence" => "udp://a:1,http://a:2",
            Kind::List if knob.name == "trusted-proxies" => "10.0.0.0/8,127.0.0.1/32",
            Kind::List => "http://a:1",
            Kind::Word if knob.name == "log-format" => "json",
            Kind::Word if knob.name == "watch-default" => "everybody",
            Kind::Word if knob.name == "cluster" => "redis://a:1",
            Kind::Word if knob.name == "tls-min" => "1.2",
            Kind::Word => "trace",
            Kind::Millis | Kind::Bytes | Kind::Count | Kind::CountOrAuto => "7",
        };
        let mut config = Config::default();
        let other = if (knob.set)(&mut config, other).is_ok() {
            other
        } else {
            "7777"
        };
        (knob.set)(&mut config, other).unwrap();
        assert_eq!((knob.get)(&config).as_deref(), Some(other), "{}", knob.name);
        let changed = KNOBS
            .iter()
            .filter(|each| (each.get)(&config) != (each.get)(&defaults));
        assert_eq!(
            changed.map(|each| each.name).collect::<Vec<_>>(),
            [knob.name]
        );
    }
}

/// Every field of `Settings` has its row: what its `Debug` names and what the rows name are the
/// same.
#[test]
fn every_setting_has_its_row() {
    let shown = format!("{:#?}", Settings::default());
    let fields: Vec<_> = shown
        .lines()
        .filter_map(|line| line.trim().split_once(':'))
        .map(|(name, _)| name)
        .collect();
    assert!(fields.len() > 20);
    for field in fields {
        assert!(KNOBS.iter().any(|knob| knob.key() == field), "{field}");
    }
}

#[test]
fn operations_page_has_the_table() {
    let page = include_str!("../../docs/OPERATIONS.md");
    let (_, rest) = page
        .split_once("<!-- flags: printed by `greendot config --markdown` -->\n")
        .unwrap();
    let (table, _) = rest.split_once("<!-- end of flags -->").unwrap();
    assert_eq!(
        table,
        knobs::markdown(),
        "print it anew with `greendot config --markdown`"
    );
}

#[test]
fn a_silence_shorter_than_a_cut_takes_to_notice_is_warned_of() {
    for (role, offline_after_ms, warned) in [
        (RoleName::All, 4_999, false),
        (RoleName::Presence, 4_999, true),
        (RoleName::Realtime, 4_999, true),
        (RoleName::Realtime, 5_000, false),
    ] {
        let mut config = Config {
            role,
            ..Config::default()
        };
        config.settings.offline_after_ms = offline_after_ms;
        assert_eq!(
            !config.warnings().is_empty(),
            warned,
            "{role:?} {offline_after_ms}"
        );
    }
}
