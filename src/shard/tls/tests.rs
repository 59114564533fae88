//! A connection's TLS against a client of the library, without a socket; and the files of a
//! certificate.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::{
    CertificateParams, CertifiedKey, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
    PKCS_RSA_SHA256, date_time_ymd,
};
use rustls::ProtocolVersion;

use super::fuzz::{Pair, client_config, server_config};
use super::session::Shaken;
use super::{Fault, TlsFiles, TlsMin, TlsRead};
use crate::time::Unix;

const REQUEST: &[u8] = b"GET /v1/stream?watch=bob HTTP/1.1\r\nHost: a\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
const BOTH: [TlsMin; 2] = [TlsMin::V1_3, TlsMin::V1_2];

fn pair(min: TlsMin) -> Pair {
    Pair::new(&server_config(min, 7), &client_config(min))
}

/// What the server reads now, all of it.
fn read_all(pair: &mut Pair) -> Vec<u8> {
    let (mut all, mut room) = (Vec::new(), [0; 65_536]);
    loop {
        match pair.read(&mut room) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&room[..n]),
            Err(Fault::Io(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(Fault::Io(error)) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                return all;
            }
            Err(fault) => panic!("{fault:?}"),
        }
    }
}

fn say(pair: &mut Pair, bytes: &[u8]) {
    pair.client.writer().write_all(bytes).unwrap();
    pair.send();
    pair.arrive(usize::MAX);
}

#[test]
fn a_request_is_opened_and_its_answer_sealed() {
    for min in BOTH {
        let mut pair = pair(min);
        assert_eq!(pair.open().unwrap(), Shaken::Full);
        let wanted = match min {
            TlsMin::V1_2 => ProtocolVersion::TLSv1_2,
            TlsMin::V1_3 => ProtocolVersion::TLSv1_3,
        };
        assert_eq!(pair.client.protocol_version(), Some(wanted));
        assert_eq!(pair.client.alpn_protocol(), Some(&b"http/1.1"[..]));
        say(&mut pair, REQUEST);
        assert_eq!(read_all(&mut pair), REQUEST);
        assert_eq!(pair.write(ANSWER).unwrap(), ANSWER.len());
        pair.receive().unwrap();
        assert_eq!(pair.client_read, ANSWER);
    }
}

#[test]
fn the_ticket_goes_in_the_same_write_as_the_first_answer() {
    let mut pair = pair(TlsMin::V1_3);
    pair.open().unwrap();
    let writes = pair.socket.writes;
    assert_eq!(pair.client.tls13_tickets_received(), 0);
    pair.write(ANSWER).unwrap();
    assert_eq!(pair.socket.writes, writes + 1);
    pair.receive().unwrap();
    assert_eq!(pair.client.tls13_tickets_received(), 1);
}

#[test]
fn what_stands_in_the_flight_of_the_last_handshake_message_is_not_lost() {
    for min in BOTH {
        let mut pair = pair(min);
        // The client's last flight, a request and its goodbye arrive at once.
        while pair.client.is_handshaking() {
            pair.send();
            pair.arrive(usize::MAX);
            pair.shake().unwrap();
            pair.receive().unwrap();
        }
        pair.client.writer().write_all(REQUEST).unwrap();
        pair.client.send_close_notify();
        pair.send();
        pair.arrive(usize::MAX);
        while pair.shake().unwrap().is_none() {}
        assert!(pair.session.holds_more() || min == TlsMin::V1_2);
        let mut room = [0; 4_096];
        assert_eq!(pair.read(&mut room).unwrap(), REQUEST.len());
        assert_eq!(&room[..REQUEST.len()], REQUEST);
        assert!(pair.session.holds_more(), "the end is still to be told");
        assert_eq!(pair.read(&mut room).unwrap(), 0);
        assert!(!pair.session.holds_more());
        // Who has ended its half is answered all the same.
        assert_eq!(pair.write(ANSWER).unwrap(), ANSWER.len());
        pair.receive().unwrap();
        assert_eq!(pair.client_read, ANSWER);
    }
}

#[test]
fn bytes_that_come_one_by_one_make_the_same_connection() {
    for min in BOTH {
        let mut pair = pair(min);
        let mut shaken = None;
        let mut sent = 0;
        while shaken.is_none() {
            pair.send();
            sent += pair.on_its_way.len();
            while !pair.on_its_way.is_empty() {
                pair.arrive(1);
                shaken = pair.shake().unwrap();
            }
            pair.receive().unwrap();
        }
        assert!(sent > 200, "{sent}");
        pair.client.writer().write_all(REQUEST).unwrap();
        pair.send();
        let mut read = Vec::new();
        while !pair.on_its_way.is_empty() {
            pair.arrive(1);
            read.extend(read_all(&mut pair));
        }
        assert_eq!(read, REQUEST);
    }
}

/// Offers `bytes` as the engine does: what was not taken is offered again, from where it was told
/// of. Returns what was told in all.
fn offer(pair: &mut Pair, bytes: &[u8]) -> usize {
    match pair.write(bytes) {
        Ok(n) => n,
        Err(Fault::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
        Err(fault) => panic!("{fault:?}"),
    }
}

#[test]
fn a_write_may_be_cut_at_any_byte() {
    let bytes: Vec<u8> = (0..40_000u32).map(|n| (n % 251) as u8).collect();
    for min in BOTH {
        let mut sealed_bytes = None;
        let mut cut = 0;
        while sealed_bytes.is_none_or(|all| cut <= all) {
            let mut pair = pair(min);
            pair.open().unwrap();
            pair.socket.window = cut;
            let mut told = offer(&mut pair, &bytes);
            let taken = pair.socket.outgoing.len();
            assert!(told <= taken, "{cut}: only what is gone is told");
            // Whole records alone: the next ones begin at multiples of the longest.
            assert!(
                told == bytes.len() || told.is_multiple_of(16_384),
                "{cut}: {told}"
            );
            while told < bytes.len() {
                pair.session.check_bounds();
                // Later a third of a record at a time.
                pair.socket.window = 5_555;
                told += offer(&mut pair, &bytes[told..]);
            }
            sealed_bytes = sealed_bytes.or((cut > 0).then_some(pair.socket.outgoing.len()));
            pair.receive().unwrap();
            assert_eq!(pair.client_read.len(), bytes.len(), "{cut}");
            assert!(pair.client_read == bytes, "{cut}");
            // Around each boundary every byte, elsewhere some.
            let near = [0, 16_384 + 22, 2 * (16_384 + 22)];
            let step = if near.iter().any(|at| cut.abs_diff(*at) < 300) {
                1
            } else {
                97
            };
            cut += step;
        }
    }
}

/// Over one connection, so that a record sealed twice, or passed over, breaks all that follow.
#[test]
fn a_client_reads_all_whichever_byte_a_write_was_cut_at() {
    // A whole record and a short one.
    let bytes: Vec<u8> = (0..16_384 + 100u32).map(|n| (n % 251) as u8).collect();
    for min in BOTH {
        let mut pair = pair(min);
        pair.open().unwrap();
        // What goes with the first answer has gone.
        pair.write(ANSWER).unwrap();
        pair.receive().unwrap();
        pair.write(&bytes).unwrap();
        let sealed_bytes = pair.socket.outgoing.len();
        assert!(sealed_bytes > bytes.len() + 2 * 16, "{sealed_bytes}");
        pair.receive().unwrap();
        for cut in 0..=sealed_bytes {
            pair.client_read.clear();
            pair.socket.window = cut;
            let mut told = offer(&mut pair, &bytes);
            let whole = [0, 16_384, bytes.len()];
            assert!(told <= cut && whole.contains(&told), "{cut}: {told}");
            pair.socket.window = usize::MAX;
            if told < bytes.len() {
                told += offer(&mut pair, &bytes[told..]);
            }
            assert_eq!(told, bytes.len(), "{cut}");
            pair.receive().unwrap();
            assert!(pair.client_read == bytes, "{cut}");
        }
    }
}

#[test]
fn what_is_offered_again_may_have_grown() {
    let mut pair = pair(TlsMin::V1_3);
    pair.open().unwrap();
    pair.socket.window = 300;
    assert_eq!(offer(&mut pair, &[1; 1_000]), 0);
    assert_eq!(offer(&mut pair, &[1; 1_000]), 0, "no room");
    pair.socket.window = usize::MAX;
    let grown = [vec![1; 1_000], vec![2; 500]].concat();
    assert_eq!(offer(&mut pair, &grown), 1_500);
    pair.receive().unwrap();
    assert_eq!(pair.client_read, grown);
}

#[test]
fn an_end_is_said_and_nothing_is_sealed_behind_it() {
    let mut pair = pair(TlsMin::V1_3);
    pair.open().unwrap();
    pair.write(ANSWER).unwrap();
    pair.close();
    pair.close();
    assert!(matches!(pair.write(ANSWER), Err(Fault::Io(_))));
    pair.receive().unwrap();
    assert_eq!(pair.client_read, ANSWER);
    let state = pair.client.process_new_packets().unwrap();
    assert!(state.peer_has_closed());
    // A record that is not whole comes first: then nothing is said, the end of the stream does.
    let mut cut = super::tests::pair(TlsMin::V1_3);
    cut.open().unwrap();
    cut.socket.window = 300;
    offer(&mut cut, &[1; 1_000]);
    cut.socket.window = usize::MAX;
    let written = cut.socket.outgoing.len();
    cut.close();
    assert_eq!(cut.socket.outgoing.len(), written);
}

#[test]
fn what_comes_behind_our_end_is_read_and_not_opened() {
    let mut pair = pair(TlsMin::V1_3);
    pair.open().unwrap();
    pair.close();
    say(&mut pair, REQUEST);
    pair.socket.incoming.extend([b'x'; 200_000]);
    let mut room = [0; 64];
    // Half of it at a time, since others wait; and then the end is waited for.
    for kind in [
        std::io::ErrorKind::Interrupted,
        std::io::ErrorKind::WouldBlock,
    ] {
        let Err(Fault::Io(error)) = pair.read(&mut room) else {
            panic!("nothing is given");
        };
        assert_eq!(error.kind(), kind);
    }
    pair.socket.ended = true;
    assert_eq!(pair.read(&mut room).unwrap(), 0);
}

#[test]
fn clients_resume_at_whoever_has_the_fleet_key() {
    for min in BOTH {
        let client = client_config(min);
        let first = server_config(min, 7);
        let mut pair = Pair::new(&first, &client);
        assert_eq!(pair.open().unwrap(), Shaken::Full);
        pair.write(ANSWER).unwrap();
        pair.receive().unwrap();
        // Another life of the server, or another node.
        let mut pair = Pair::new(&server_config(min, 7), &client);
        assert_eq!(pair.open().unwrap(), Shaken::Resumed, "{min:?}");
        pair.write(ANSWER).unwrap();
        pair.receive().unwrap();
        let mut pair = Pair::new(&server_config(min, 8), &client);
        assert_eq!(pair.open().unwrap(), Shaken::Full, "{min:?}");
    }
}

#[test]
fn both_sides_change_their_keys_and_no_byte_is_lost() {
    let mut pair = pair(TlsMin::V1_3);
    pair.open().unwrap();
    for round in 0..200u32 {
        pair.client.refresh_traffic_keys().unwrap();
        let asked = round.to_be_bytes();
        say(&mut pair, &asked);
        assert_eq!(read_all(&mut pair), asked);
        // The answer to the key update goes before it, in one write.
        let writes = pair.socket.writes;
        assert_eq!(offer(&mut pair, &asked), 4);
        assert_eq!(pair.socket.writes, writes + 1);
        pair.receive().unwrap();
        assert_eq!(std::mem::take(&mut pair.client_read), asked);
    }
}

#[test]
fn an_old_version_is_refused_with_its_alert() {
    let server = server_config(TlsMin::V1_3, 7);
    let mut pair = Pair::new(&server, &client_config(TlsMin::V1_2));
    let fault = pair.open().unwrap_err();
    assert!(matches!(fault, Fault::Version), "{fault:?}");
    // alert, TLS 1.2 on the wire, two bytes: fatal, protocol_version.
    assert_eq!(pair.socket.outgoing, [21, 3, 3, 0, 2, 2, 70]);
    let both = server_config(TlsMin::V1_2, 7);
    for min in BOTH {
        let mut pair = Pair::new(&both, &client_config(min));
        assert_eq!(pair.open().unwrap(), Shaken::Full);
    }
}

#[test]
fn who_speaks_no_protocol_of_ours_is_told_so_inside_what_has_begun() {
    let server = server_config(TlsMin::V1_3, 7);
    let mut client = (*client_config(TlsMin::V1_3)).clone();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let mut pair = Pair::new(&server, &std::sync::Arc::new(client));
    pair.send();
    pair.arrive(usize::MAX);
    let fault = pair.shake().unwrap_err();
    assert!(matches!(fault, Fault::Incompatible), "{fault:?}");
    let said = pair.receive().unwrap_err();
    let wanted = rustls::AlertDescription::NoApplicationProtocol;
    assert_eq!(said, rustls::Error::AlertReceived(wanted));
}

#[test]
fn plain_http_is_told_where_it_is() {
    let mut pair = pair(TlsMin::V1_3);
    pair.socket.incoming.extend(REQUEST);
    assert!(matches!(pair.shake(), Err(Fault::NotTls)));
    let said = String::from_utf8(pair.socket.outgoing).unwrap();
    assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{said}");
    assert!(
        said.contains("use https:// in the place of http://"),
        "{said}"
    );
}

#[test]
fn garbage_has_its_alert() {
    for garbage in [
        // Of no type; of another version; too long.
        &b"\x80\x00\x00\x00\x00\x00"[..],
        b"\x16\x04\x00\x00\x01\x00",
        b"\x16\x03\x01\xff\xff\x00",
        // A handshake message that is none.
        b"\x16\x03\x01\x00\x04\x63\x00\x00\x00",
        b"\x17\x03\x03\x00\x01\x00",
        b"\x14\x03\x03\x00\x01\x02",
    ] {
        let mut pair = pair(TlsMin::V1_3);
        pair.socket.incoming.extend(garbage);
        let fault = pair.shake().unwrap_err();
        assert!(matches!(fault, Fault::Misbehaved), "{garbage:?}: {fault:?}");
        let alert = pair.socket.outgoing.as_slice();
        assert!(
            matches!(alert, [21, 3, _, 0, 2, 2, _]),
            "{garbage:?}: {alert:?}"
        );
        assert!(
            matches!(pair.shake(), Err(Fault::Misbehaved)),
            "and it is over"
        );
    }
}

#[test]
fn a_fault_in_the_middle_of_a_split_message_is_answered() {
    // Half of a handshake message, and then a record that may not stand there: rustls 0.23.46
    // panics if it is asked for the alert with less than it was shown.
    for cut in [1, 4, 5, 60] {
        let mut pair = pair(TlsMin::V1_3);
        pair.send();
        let hello: Vec<u8> = pair.on_its_way.drain(..).skip(5).collect();
        let mut begun = vec![22, 3, 1, 0, cut as u8];
        begun.extend_from_slice(&hello[..cut]);
        pair.socket.incoming.extend(begun);
        assert!(pair.shake().unwrap().is_none());
        for wrong in [
            &b"\x17\x03\x03\x00\x01\x00"[..],
            b"\x16\x03\x03\x00\x00",
            b"\xff",
        ] {
            pair.socket.incoming.extend(wrong);
        }
        assert!(matches!(pair.shake(), Err(Fault::Misbehaved)));
        // The library has no alert for each of these.
        let alert = pair.socket.outgoing.as_slice();
        let is_alert = matches!(alert, [21, 3, _, 0, 2, 2, _]);
        assert!(is_alert || alert.is_empty(), "{cut}: {alert:?}");
    }
}

#[test]
fn a_handshake_message_that_does_not_end_is_refused_in_time() {
    let mut pair = pair(TlsMin::V1_3);
    // A first message that says it has 64 KB, in records of a KB.
    let mut record = vec![22, 3, 1, 4, 0];
    record.resize(5 + 1_024, 0);
    record[5..9].copy_from_slice(&[1, 0, 255, 255]);
    let mut records = 0;
    let fault = loop {
        pair.socket.incoming.extend(&record);
        record[5..9].copy_from_slice(&[0; 4]);
        records += 1;
        match pair.shake() {
            Ok(None) => pair.session.check_bounds(),
            Ok(Some(_)) => panic!("it is no handshake"),
            Err(fault) => break fault,
        }
    };
    assert!(matches!(fault, Fault::Misbehaved), "{fault:?}");
    assert!(records <= 36, "{records}");
}

#[test]
fn many_records_give_others_their_turn() {
    let mut pair = pair(TlsMin::V1_3);
    pair.open().unwrap();
    for _ in 0..5_000 {
        say(&mut pair, b"a");
    }
    let mut room = [0; 65_536];
    let (mut read, mut reads) = (0, 0);
    while read < 5_000 {
        read += pair.read(&mut room).unwrap();
        reads += 1;
        assert_eq!(pair.session.holds_more(), read < 5_000, "after {read}");
    }
    assert_eq!(reads, 3, "2,048 records at a time");
}

#[test]
fn a_small_room_is_filled_again_and_again() {
    let mut pair = pair(TlsMin::V1_3);
    pair.open().unwrap();
    let said: Vec<u8> = (0..50_000u32).map(|n| (n % 251) as u8).collect();
    say(&mut pair, &said);
    let (mut read, mut room) = (Vec::new(), [0; 1_000]);
    while read.len() < said.len() {
        let n = pair.read(&mut room).unwrap();
        assert_eq!(n, 1_000);
        read.extend_from_slice(&room[..n]);
        pair.session.check_bounds();
    }
    assert!(read == said);
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn issue(key: KeyPair, years: [i32; 2]) -> CertifiedKey<KeyPair> {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = date_time_ymd(years[0], 1, 1);
    params.not_after = date_time_ymd(years[1], 1, 1);
    let cert = params.self_signed(&key).unwrap();
    CertifiedKey {
        cert,
        signing_key: key,
    }
}

#[test]
fn files_of_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles {
        certificate: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
    };
    let read = || TlsRead::read(files.clone(), TlsMin::V1_3).map(|read| read.certificate);
    let refused = || read().unwrap_err().to_string();
    assert!(refused().contains("cert.pem: can not be read"));

    let p256 = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let issued = issue(p256(), [2020, 2040]);
    let (cert, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
    write(&files.certificate, &cert, 0o644);
    assert!(refused().contains("key.pem: can not be read"));
    for mode in [0o600, 0o640, 0o440] {
        write(&files.key, &key, 0o600);
        fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
        read().unwrap();
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
    }
    for mode in [0o644, 0o604, 0o602] {
        write(&files.key, &key, mode);
        let said = refused();
        assert!(
            said.contains("everybody on this machine may use this key"),
            "{said}"
        );
        assert!(said.contains("`chmod o-rw "), "{said}");
    }
    write(&files.key, &p256().serialize_pem(), 0o600);
    let said = refused();
    assert!(
        said.contains("this key is not that of the certificate in"),
        "{said}"
    );
    assert!(said.contains("--tls-cert and --tls-key"), "{said}");
    write(&files.key, &cert, 0o600);
    assert!(refused().contains("there is no private key in it"));
    write(&files.key, &key, 0o600);
    write(&files.certificate, &key, 0o644);
    assert!(refused().contains("there is no certificate in it"));
    write(&files.certificate, &cert, 0o646);
    assert!(refused().contains("may put another certificate there"));
    let broken = cert.replacen("MII", "AAA", 1);
    write(&files.certificate, &broken, 0o644);
    let said = refused();
    assert!(
        said.contains("its first certificate can not be read"),
        "{said}"
    );
    write(&files.certificate, &"a".repeat((1 << 20) + 1), 0o644);
    assert!(refused().contains("too long"));
}

#[test]
fn what_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles {
        certificate: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
    };
    let read = |key: KeyPair| {
        let issued = issue(key, [2020, 2030]);
        write(&files.certificate, &issued.cert.pem(), 0o644);
        write(&files.key, &issued.signing_key.serialize_pem(), 0o600);
        TlsRead::read(files.clone(), TlsMin::V1_3)
            .unwrap()
            .certificate
    };
    let certificate = read(KeyPair::generate_for(&PKCS_ED25519).unwrap());
    // 2030-01-01, 2020-01-01.
    let (expires, begins) = (1_893_456_000_000, 1_577_836_800_000);
    assert_eq!(certificate.expires, Unix::from_ms(expires));
    let said = |at| certificate.warnings(Unix::from_ms(at)).join("\n");
    let day_ms = 86_400_000;
    assert_eq!(said(begins), "");
    assert_eq!(said(expires - 14 * day_ms), "");
    assert!(said(expires - 14 * day_ms + 1).contains("expires in 335 hours"));
    assert!(said(expires).contains("has expired"));
    assert!(said(begins - 1).contains("does not count yet"));
    let rsa = read(KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
    let said = rsa.warnings(Unix::from_ms(begins)).join("\n");
    assert!(
        said.contains("the key is RSA") && said.contains("P-256"),
        "{said}"
    );
}
