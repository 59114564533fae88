//! The fuzz bodies of the parsers on stable: a fixed number of seeded mutations of valid
//! inputs.
//!
//! The same inputs every time. `FUZZ_SEED` and `FUZZ_INPUTS` widen a run; libFuzzer in `fuzz/`
//! searches further.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use greendot::auth;
use greendot::fleet;
use greendot::shard;
use greendot::wire::fuzz;

/// Mutated inputs for each body, unless `FUZZ_INPUTS` says otherwise.
const INPUTS: usize = 20_000;
/// Longest input; what grows beyond is cut.
const INPUT_BYTES_MAX: usize = 2_048;

#[test]
fn request() {
    run("request", fuzz::request, REQUESTS);
}

#[test]
fn chunked() {
    run("chunked", fuzz::chunked, CHUNKED);
}

#[test]
fn target_query() {
    run("target_query", fuzz::target_query, TARGETS);
}

#[test]
fn sse_reader() {
    run("sse_reader", fuzz::sse_reader, STREAMS);
}

#[test]
fn beat() {
    run("beat", fuzz::beat, ENTRIES);
}

#[test]
fn device_beat() {
    run("device_beat", fuzz::device_beat, DEVICES);
}

#[test]
fn bundle() {
    run("bundle", fuzz::bundle, BUNDLES);
}

#[test]
fn key_file() {
    run("key_file", fuzz::key_file, KEY_FILES);
}

#[test]
fn feed_header() {
    run("feed_header", fuzz::feed_header, FEED_HEADERS);
}

#[test]
fn record_bodies() {
    run("record_bodies", fuzz::record_bodies, BODIES);
}

#[test]
fn token() {
    run("token", auth::fuzz::token, TOKENS);
}

#[test]
fn ticket() {
    run("ticket", auth::fuzz::ticket, TICKETS);
}

#[test]
fn jwt_keys() {
    run("jwt_keys", auth::fuzz::jwt_keys, JWT_KEYS);
}

#[test]
fn tls() {
    run("tls", shard::tls::fuzz::tls, TLS);
}

/// Steps of two bytes each; see the body.
const TLS: &[&[u8]] = &[
    // A handshake in whole flights, a request, an answer; the same in TLS 1.2.
    b"\0\x02\0\x0c\0\x0a\0\x02\0\x0c\0\x0a\0\0\x09\x02\0\x08\xff\x09\x50\x0a\0",
    b"\x01\x02\0\x0c\0\x0a\0\x02\0\x0c\0\x0a\0\x02\0\x0c\0\0\x09\x02\0\x08\xff\x09\x50\
      \x0a\0",
    // An open connection: data both ways in pieces, through a narrow window, with key updates.
    b"\x02\0\x50\x01\x30\x08\x10\x01\xff\x08\xff\x02\0\x08\x20\x08\xff\x0b\xff\0\x01\x02\0\x08\xff\
      \x06\x50\x09\xf0\x06\xff\x09\xf0\x07\0\x09\xf0\x0a\0",
    b"\x03\0\xff\x02\0\x08\x01\x08\xff\x06\x10\x09\xff\x07\0\x09\xff\x0a\0\x0b\0\x02\0\x08\xff\
      \x0b\x50",
    // Bent on the way, broken in, cut off.
    b"\x02\0\x50\x03\x07\x02\0\x08\xff\x0a\0\x09\x10\x08\xff",
    b"\x02\x05\x02\x02\0\x08\xff\x0a\0\x0b\x80\x08\xff",
    b"\0\x01\x30\x0c\0\x05\x01\x04\x16\x02\0\x0c\0\x0a\0\x0c\0",
];

#[test]
fn fleet_message() {
    run("fleet_message", fleet::fuzz::message, FLEET_MESSAGES);
}

const FLEET_MESSAGES: &[&[u8]] = &[
    b"birthday\0\0\0\0\0\x07\0\0\0\0\0\x09+\x02\x03bob-\x05\0\0\0\0\x01\x02\x05carol",
    b"birthday\0\0\0\0\0\x07\x01\x9a\xb7\x2a\x64\0\
      -\x0d\0\0\0\0\x01\x02\0\0\0\0\x01\x03\x02\xc3\xa9",
    b"birthday\xff\xff\xff\xff\xff\xfe\0\0\0\0\0\x09!\0\0\0\0\0\x01\x02\x01a=\x05\x01bx\0\x01c",
    b"birthday\0\0\0\0\0\x07\0\0\0\0\0\x09",
];

#[test]
fn fleet_kept() {
    run("fleet_kept", fleet::fuzz::kept, FLEET_KEPT);
}

const FLEET_KEPT: &[&[u8]] = &[
    b"\0\0\0\0\0\x03\x06life\x05\0\0\0\0\x01\x02lief\x02",
    b"\0\0\0\x01\0\0\0\0\x02\x01",
    b"birthday\0\0\0\0\0\x07\0\0\0\0\0\x09",
    b"F\0\0\0\0\0\x05\0\0\x01\x02",
    b"obirthday\0\0\0\0\0\x07\0\0\0\0\0\x09\0\0\0\x02e.nsl",
    b"fbirthday\0\0\0\0\0\x07\0\0\0\x02",
    b"GDGAP 281474976710655",
];

#[test]
fn service_keys() {
    run("service_keys", auth::fuzz::service_keys, SERVICE_KEYS);
}

const SERVICE_KEYS: &[&[u8]] = &[
    b"# services\n\napp beat,query \
      blake3:21366819ad317429337c63d4811051529a1eba4afe35c9a85f31a9b20511d23f\r\n\
      gds_app_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc",
    b"a publish,metrics,admin,revoke,ticket \
      blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262\n\
      a metrics blake3:bf1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
];

const BUNDLES: &[&[u8]] = &[b"", b"\0\x03abc", b"\0\x01a\0\x02bc\0\0\0\x01d"];

const REQUESTS: &[&[u8]] = &[
    b"GET /v1/presence/bob HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n",
    b"GET /v1/stream?user=alice&watch=bob HTTP/1.1\r\nHost: a\r\nLast-Event-ID: 17\r\nOrigin: \
      https://a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\nPOST http://a:80/v1/beat?x HTTP/1.1\r\nHost: [::1]:80\r\nContent-Type: \
      application/json\r\nContent-Length: 14\r\nExpect: 100-continue\r\n\r\n{\"users\":[\"a\"]}",
    b"PUT /a HTTP/1.1\r\nHost:\r\nTransfer-Encoding: chunked\r\nConnection: close, x\r\n\r\n0\r\n\
      \r\n",
    b"OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\nAuthorization: Bearer x\r\n\r\n",
    b"A / HTTP/2.0\r\na:b\r\nc:d\r\ne:f\r\ng:h\r\n\r\n",
];
const CHUNKED: &[&[u8]] = &[
    b"\x025\r\nhello\r\n0\r\n\r\nGET",
    b"\x07A;a=\"b\"\r\n0123456789\r\n00\r\nA: b\r\nC:\r\n\r\n",
    b"\x0fffffffffffffffff\r\n",
    b"\x001\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n",
];
const TARGETS: &[&[u8]] = &[
    b"user=alice&watch=bob&watch=carol",
    b"a%2Fb+c%20%C3%A9%00",
    b"&&=x&a=b=c&%25=%252F&+=%2B",
    "\u{1F7E2}=\u{e9}%F0%9F%9F%A2".as_bytes(),
];
const STREAMS: &[&[u8]] = &[
    b"\x03event: hello\nretry: 3417\ndata: {\"stream\":\"2.51\"}\n\nevent: presence\nid: 17\n\
      data: {}\n\n:\n",
    b"\x01\xef\xbb\xbfdata: a\r\ndata: b\r\n\r\nid\r\rdata\r\r",
    b"\x00id: 1\0\nid: 2\nretry: x\ndata:\n\n: x\n\ndata\ndata\n\n",
    b"\x10data: \xf0\x9f\x9f\xa2\xff\n\n",
];
const ENTRIES: &[&[u8]] = &[
    b"\x03bob\x05carol",
    b"\x01a",
    b"\x02\xc3\xa9\x04\xf0\x9f\x9f\xa2\x10sixteen-byte-id!",
    &[b'~'; 127],
    &{
        let mut longest = [b'x'; 129];
        longest[0] = 128;
        longest
    },
];
const DEVICES: &[&[u8]] = &[
    b"alicephone",
    "al\u{e9}e\u{1f4f1}xyz".as_bytes(),
    b"GD\x01\0\xb9\x76\x9a\x2c\0\0\x01\x9a\xb7\x2a\x64\0\0\0\x4f\xc4\x05phone\x05alice\
      0123456789abcdef",
];
const KEY_FILES: &[&[u8]] = &[
    b"# signs\n000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n\n  \
      ffeeddccbbaa99887766554433221100FFEEDDCCBBAA99887766554433221100\r\n",
    b"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n\
      000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F",
    b"\n#\n \t\n",
    b"00\n",
];
const FEED_HEADERS: &[&[u8]] = &[
    b"00000000000000a7 0 1 1764009600123",
    b"a7 4 5",
    b"ffffffffffffffff 18446744073709551615 0 18446744073709551615",
    b"00000000000000a7 57",
];
const BODIES: &[&[u8]] = &[
    b"{\"users\":[\"a\",\"b\",\"a\"]}",
    b"{\"add\":[\"a\"],\"remove\":[\"\\u00e9\",\"\\ud83d\\udfe2\"]}",
    b"{\"user\":\"alice\",\"watch\":[\"bob\"],\"last_event_id\":\"1764009600123\"}",
    b"{\"user\":null,\"watch\":[],\"last_event_id\":null}",
    b"{\"users\":[\"a\",\"b\",\"c\",\"d\",[[[[[[1]]]]]]]}",
    b"{\"presence\":[{\"user\":\"a\",\"status\":\"online\",\"since\":1,\"last_active\":2},\
      {\"user\":\"\\u00e9\",\"status\":\"offline\",\"since\":null,\"last_active\":null}]}",
    b"a\"b\\c/\xc2\xa0",
];
const TOKENS: &[&[u8]] = &[
    b"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbGljZSIsImV4cCI6MTc2NDAxMzIwMH0.\
      lqYfluv_eMWyB3_Cv7XO5RR09V_BNJPpB6eG-ycpziE",
    b"{\"alg\":\"HS256\",\"typ\":\"at+jwt\",\"kid\":\"app\",\"jku\":\"a\",\"crit\":[]}",
    b"{\"sub\":\"alice\",\"exp\":1764013200,\"greendot\":{\"watch\":[\"team-*\",\"bob\",\"*\"],\
      \"last_active\":\"minutes\",\"publish\":false}}",
    b"{\"aud\":[\"a\"],\"iss\":\"b\",\"nbf\":1,\"iat\":2,\"sub\":\"\\u00e9\",\"exp\":1764013200}",
    b"{\"sub\":\"a\",\"sub\":\"b\",\"exp\":1764013200.5}",
];
const TICKETS: &[&[u8]] = &[
    b"\0\0\x01\x9a\xb7\x2a\x64\0\x04\x05alice",
    b"\0\0\x01\x9a\xb7\x2a\x64\0\x01\x05alice\x03bob\x06team-*\x02\xc3\xa9",
    b"\0\0\x01\x9a\xb7\x2a\x64\0\x06\x01a\x01*",
    b"ATl2miwAAAAAAAAAATL4sdSj-d5mAAABmrcqZAAAAAGat2FSgAQFYWxpY2UDYm9iCAKGa_AuZrAgdr57d1LxMw",
];
const JWT_KEYS: &[&[u8]] = &[
    b"0123456789abcdef0123456789abcdef\r\n",
    b"-----BEGIN PUBLIC KEY-----\n\
      MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
      -----END PUBLIC KEY-----\n",
    b"MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    b"{\"keys\":[{\"kid\":\"1\",\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"use\":\"sig\",\
      \"alg\":\"EdDSA\",\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"},{\"kid\":\"2\",\"\
      kty\":\"oct\",\
      \"k\":\"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY\"},{\"kty\":\"RSA\",\"use\":\"enc\"}]}",
    b"{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU\",\
      \"y\":\"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0\"}",
];

fn run(name: &str, body: fn(&[u8]), corpus: &[&[u8]]) {
    let seed = setting("FUZZ_SEED").unwrap_or(0x6772_6565_6e64_6f74);
    let inputs = setting("FUZZ_INPUTS").map_or(INPUTS, |inputs| inputs as usize);
    let mut random = fastrand::Rng::with_seed(seed);
    for input in corpus {
        check(name, body, input);
    }
    for _ in 0..inputs {
        check(name, body, &mutated(corpus, &mut random));
    }
    println!("{name}: {} inputs, seed {seed:#x}", corpus.len() + inputs);
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is not a number")),
    )
}

fn check(name: &str, body: fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(input))) {
        println!("{name} fails on b\"{}\"", input.escape_ascii());
        resume_unwind(panic);
    }
}

/// A corpus input with one to eight changes.
fn mutated(corpus: &[&[u8]], random: &mut fastrand::Rng) -> Vec<u8> {
    const TELLING: &[u8] = b"\r\n\0\t :;,%+&=?#/*\"\\[]{}0123456789afAF\x7f\x80\xc2\xff";
    let mut input = corpus[random.usize(..corpus.len())].to_vec();
    for _ in 0..random.usize(1..=8) {
        let at = random.usize(..=input.len());
        let end = random.usize(at..=input.len());
        match random.u8(..8) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => input.insert(at, random.u8(..)),
            3 => input.insert(at, TELLING[random.usize(..TELLING.len())]),
            4 => {
                let other = corpus[random.usize(..corpus.len())];
                let from = random.usize(..=other.len());
                input.splice(at..end, other[from..].iter().copied());
            }
            5 => {
                let again = input[at..end].repeat(random.usize(1..4));
                input.splice(at..at, again);
            }
            6 if at < input.len() => input[at] = TELLING[random.usize(..TELLING.len())],
            _ if at < input.len() => input[at] ^= 1 << random.u8(..8),
            _ => {}
        }
        input.truncate(INPUT_BYTES_MAX);
    }
    input
}
