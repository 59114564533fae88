use super::*;

fn asked(line: &str) -> Ask {
    let matches = command().try_get_matches_from(line.split(' ')).unwrap();
    ask(&matches, Vec::new()).unwrap()
}

#[test]
fn the_grammar_is_sound() {
    command().debug_assert();
}

#[test]
fn serve_is_the_default() {
    for line in [
        "greendot --retry-ms 5s --insecure",
        "greendot serve --retry-ms 5s --insecure",
    ] {
        let Ask::Serve(sources) = asked(line) else {
            panic!("{line}")
        };
        let flags = [
            ("insecure".into(), "true".into()),
            ("retry-ms".into(), "5s".into()),
        ];
        assert_eq!(sources.flags, flags);
    }
    let Ask::Serve(sources) = asked("greendot --insecure=false --config a.toml") else {
        panic!()
    };
    assert_eq!(sources.flags, [("insecure".into(), "false".into())]);
    assert_eq!(sources.config_file, Some(PathBuf::from("a.toml")));
}

#[test]
fn halves_and_repeated_nodes() {
    let line = "greendot realtime --presence udp://a:1,http://a:2 --presence udp://b:1,http://b:2 \
                --key-file k";
    let Ask::Serve(sources) = asked(line) else {
        panic!()
    };
    assert_eq!(sources.role, Some(RoleName::Realtime));
    let nodes = "udp://a:1,http://a:2,udp://b:1,http://b:2";
    assert_eq!(
        sources.flags,
        [
            ("key-file".into(), "k".into()),
            ("presence".into(), nodes.into())
        ]
    );
    let Ask::Serve(sources) = asked("greendot presence --realtime http://a:1") else {
        panic!()
    };
    assert_eq!(sources.role, Some(RoleName::Presence));
}

#[test]
fn beat_finds_its_key() {
    let key_file = |line| match asked(line) {
        Ask::Beat(options) => options.key_file,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        key_file("greendot beat bob"),
        PathBuf::from("./greendot-data/fleet.key")
    );
    assert_eq!(
        key_file("greendot beat bob --data-dir d"),
        PathBuf::from("d/fleet.key")
    );
    assert_eq!(
        key_file("greendot beat bob --key-file k"),
        PathBuf::from("k")
    );
}

#[test]
fn beat_options() {
    let Ask::Beat(options) =
        asked("greendot beat bob carol --every 10s --count 3 --udp 127.0.0.1:9")
    else {
        panic!()
    };
    assert_eq!(
        (options.users, options.every_ms, options.count),
        (vec!["bob".into(), "carol".into()], Some(10_000), Some(3))
    );
    for line in [
        "greendot beat",
        "greendot beat bob --count 2",
        "greendot beat bob --leave --every 1s",
        "greendot beat bob --every 0",
    ] {
        assert!(
            command().try_get_matches_from(line.split(' ')).is_err(),
            "{line}"
        );
    }
}

#[test]
fn beat_asks_the_server_that_it_beats_to() {
    let http_of = |set: &[(&str, &str)], line: &str| {
        let variables = set.iter().map(|(name, text)| (name.into(), text.into()));
        let matches = command().try_get_matches_from(line.split(' ')).unwrap();
        match ask(&matches, variables.collect()) {
            Ok(Ask::Beat(options)) => options.http.map(|http| http.to_string()),
            other => panic!("{other:?}"),
        }
    };
    let (beat_to, url) = (("GREENDOT_BEAT_TO", "b:2"), ("GREENDOT_URL", "b:1"));
    for (set, line, http) in [
        (
            &[][..],
            "greendot beat bob",
            Some("127.0.0.1:8080 (the default of --http)"),
        ),
        (&[], "greendot beat bob --udp a:2", None),
        (&[beat_to], "greendot beat bob", None),
        (
            &[],
            "greendot beat bob --udp a:2 --http a:1",
            Some("a:1 (--http)"),
        ),
        (
            &[beat_to, url],
            "greendot beat bob",
            Some("b:1 (GREENDOT_URL)"),
        ),
        (&[url], "greendot beat bob --http a:1", Some("a:1 (--http)")),
    ] {
        assert_eq!(http_of(set, line).as_deref(), http, "{line}");
    }
}

#[test]
fn the_tools_read_where_the_server_is_from_a_variable() {
    let set = [
        ("GREENDOT_URL", "http://localhost:1"),
        ("GREENDOT_BEAT_TO", "localhost:2"),
    ];
    let set_to = |set: &[(&str, &str)], line: &str| -> Result<String, String> {
        let variables = set.iter().map(|(name, text)| (name.into(), text.into()));
        let matches = command().try_get_matches_from(line.split(' ')).unwrap();
        match ask(&matches, variables.collect())? {
            Ask::Watch(options) => Ok(options.http.to_string()),
            Ask::Top(options) => Ok(options.http.to_string()),
            Ask::Beat(options) => Ok(options.udp.to_string()),
            Ask::Doctor(_, question) => Ok(question
                .named
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")),
            other => panic!("{other:?}"),
        }
    };
    for (line, place) in [
        ("greendot watch bob", "localhost:1 (GREENDOT_URL)"),
        ("greendot top", "localhost:1 (GREENDOT_URL)"),
        ("greendot beat bob", "localhost:2 (GREENDOT_BEAT_TO)"),
        ("greendot top --http localhost:3", "localhost:3 (--http)"),
        (
            "greendot doctor",
            "localhost:1 (GREENDOT_URL), localhost:2 (GREENDOT_BEAT_TO)",
        ),
    ] {
        assert_eq!(set_to(&set, line).as_deref(), Ok(place), "{line}");
    }
    let nobody = "127.0.0.1:8080 (the default of --http)";
    for unset in [&[][..], &[("GREENDOT_URL", "")]] {
        assert_eq!(set_to(unset, "greendot top").as_deref(), Ok(nobody));
    }
    for line in ["greendot top", "greendot doctor"] {
        let fault = set_to(&[("GREENDOT_URL", "https://a")], line).unwrap_err();
        assert_eq!(
            fault,
            "GREENDOT_URL: \"https://a\" is no HOST:PORT; write it as 127.0.0.1:8080 or \
             http://localhost:8080"
        );
    }
}

#[test]
fn tokens_are_made_and_judged() {
    let Ask::Token(token::Options::Make(made)) =
        asked("greendot token --user alice --watch team-* --watch bob --ttl 5m --key k")
    else {
        panic!()
    };
    let expected = token::Make {
        user: "alice".into(),
        watch: Some(vec!["team-*".into(), "bob".into()]),
        ttl_ms: 300_000,
        last_active: LastActive::Exact,
        viewer: false,
        audience: None,
        issuer: None,
        id: None,
        kid: None,
        key: "k".into(),
    };
    assert_eq!(made, expected);
    let Ask::Token(token::Options::Check(judged)) =
        asked("greendot token --check --key a --key b --aud x --iss y")
    else {
        panic!()
    };
    assert_eq!(judged.keys, [PathBuf::from("a"), PathBuf::from("b")]);
    assert_eq!(
        (judged.audience, judged.issuer),
        (Some("x".into()), Some("y".into()))
    );
    let from_variable = |files: &str| {
        let line = "greendot token --user alice";
        let matches = command().try_get_matches_from(line.split(' ')).unwrap();
        ask(&matches, vec![("GREENDOT_JWT_KEYS".into(), files.into())])
    };
    let Ok(Ask::Token(token::Options::Make(made))) = from_variable("v.secret") else {
        panic!()
    };
    assert_eq!(made.key, PathBuf::from("v.secret"));
    let why = "name the key's file with --key, or in GREENDOT_JWT_KEYS";
    assert_eq!(from_variable("").unwrap_err(), why);
    assert_eq!(
        from_variable("a,b").unwrap_err(),
        "a token is signed by one key; name one file with --key"
    );
    for line in [
        "greendot token --key k",
        "greendot token --check --user alice --key k",
        "greendot token --user alice --key k --last-active never",
    ] {
        assert!(
            command().try_get_matches_from(line.split(' ')).is_err(),
            "{line}"
        );
    }
}
