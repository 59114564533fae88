//! What an engine may be told: intervals and limits, one field each, with its unit, default,
//! meaning of zero and cost.
//!
//! Owns the defaults, the `tiny` preset and the checks between fields. Never reads a file, a flag
//! or the environment: `config/` fills one of these in. Times are `u64` milliseconds, counts and
//! sizes `usize`.

mod addresses;
mod check;
mod origins;
mod returns;
mod shared;

pub use addresses::CLIENTS_AT_LEAST;
pub use origins::LOOPBACK;
pub(super) use origins::octets;
pub use shared::SharedSettings;

use ipnet::IpNet;

pub use crate::presence::FLAP_TRANSITIONS_MAX;
use crate::presence::{MassSilenceRule, SweepRules};
use crate::time::ANCHOR_TOLERANCE_MS;
use crate::wire::request::RequestLimits;

/// Longest `presence` event in bytes: an id of 128 bytes that are all escaped in JSON (256), the
/// record's other members (104 with two 20-digit times), the lines `event`, `id` and `data` (64).
pub const EVENT_BYTES_MAX: usize = 512;
/// Longest line of a stream in bytes, whatever the outbox holds: readers and proxies bound theirs,
/// and 64 KiB is a common bound.
pub const LINE_BYTES_MAX: usize = 64_000;
/// Longest response head of a stream in bytes, CORS lines with an origin of [`ORIGIN_BYTES_MAX`]
/// included.
pub const STREAM_HEAD_BYTES_MAX: usize = 1_024;
/// Longest `hello` block in bytes.
pub const HELLO_BYTES_MAX: usize = 512;
/// Longest CORS origin in bytes.
pub const ORIGIN_BYTES_MAX: usize = 256;
/// Smallest `outbox_bytes_max`: what a stream is told at once, and one event.
pub const OUTBOX_BYTES_FLOOR: usize = STREAM_HEAD_BYTES_MAX + HELLO_BYTES_MAX + EVENT_BYTES_MAX;
/// Smallest `head_bytes_max`: `GET /v1/presence/{user}` for a 128-byte id that is percent-encoded
/// throughout (384), and the headers that browsers send.
pub const HEAD_BYTES_FLOOR: usize = 1_024;
/// Connections that a shard admits beyond `conns_max` at a time, to be refused politely or to be
/// let in if they see to the server itself: health checks, scrapes, published states.
pub const SURPLUS_CONNS: usize = 64;
/// Time in which such a connection must begin to ask, in ms: whoever says nothing keeps the others
/// out.
pub const SURPLUS_HEARING_MS: u64 = 500;
/// A turn longer than this, in ms, was a stall: the engine's silence, not its publishers'
/// (docs/ARCHITECTURE.md).
pub const STALL_MS: u64 = 1_000;
/// Streams of the node's figures that a shard takes at a time: each is a page that an operator
/// looks at, and costs some kilobytes a second.
pub const NODE_STREAMS_MAX: usize = 16;
/// Longest hold after a start, in ms, that settings may come to: an hour.
pub const HOLD_MS_MAX: u64 = 3_600_000;
/// Longest sleep of a shard, in ms: one whose last turn is older than a few of these counts as
/// stalled for the others.
pub const SLEEP_MS_MAX: u64 = 500;

/// Everything an engine is told at start. Plain data; [`Settings::check`] holds the fields against
/// each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// How often a publisher is vouched for, in ms: told to clients in `hello`, and the period at
    /// which the platform beats for its own streams. Default 10,000. Zero is refused. Cost: one
    /// stamp write per stream and interval.
    pub beat_interval_ms: u64,
    /// Silence after which a publisher is offline, in ms. Default 25,000: two lost beats and the
    /// sweep's delay are forgiven. At least twice `beat_interval_ms`. Costs nothing; smaller values
    /// make false offlines likelier.
    pub offline_after_ms: u64,
    /// Time from the start of one sweep over a shard's slots to the next, in ms: the most by which
    /// an offline is told late. Default 250. Zero is refused; at most half of `offline_after_ms`.
    /// Cost: 8 bytes read per known active slot and sweep.
    pub sweep_interval_ms: u64,
    /// Most that a datagram's `sent_at` may differ from the server's clock, in ms. Default 30,000.
    /// At least the 1,000 ms by which the server's own clock may be off. Cost: recent goodbyes are
    /// remembered twice as long.
    pub beat_skew_max_ms: u64,
    /// Time in which one epoch of devices' keys follows another, in ms; a key counts in its own and
    /// in the one behind. Default 86,400,000: a day. Zero is refused. Costs nothing; smaller values
    /// make devices ask for keys more often.
    pub device_key_epoch_ms: u64,
    /// Silence after which an offline user is forgotten, in ms. Default 0: nobody ever is. At least
    /// a day, and longer than `offline_after_ms`. Cost: a slow look at all slots.
    pub forget_after: u64,
    /// Time for which a device says that nobody has been at it, in ms, from which on it counts as
    /// idle: a user is away at all of whose devices it is so. Default 300,000. 0: nobody is. Costs
    /// nothing where no device says it; four bytes a user where one does.
    pub away_after: u64,
    /// Most transitions of one user in ten seconds; the last one beyond them is told once they are
    /// over. Default 0: all are told at once. At most 14. Cost: a mebibyte a shard.
    pub flap_transitions_max: usize,
    /// Time for which nobody is expired if many fall silent at once, in ms: at least 1,000, and
    /// more than a fifth of those online. Default 0: they are expired as others are. Costs nothing;
    /// who has gone is told so much later.
    pub mass_offline_hold_ms: u64,
    /// Silence on a stream after which at the latest a ping keeps it alive, in ms, jittered: told
    /// to clients in `hello`, who know by it when a stream is dead. Default 15,000, below the 60 s
    /// after which common proxies cut. Zero is refused. Cost: one small write per stream and
    /// interval.
    pub keep_alive_ms: u64,
    /// Time for which what was written to a stream may be unacknowledged before its holder is not
    /// vouched for, in ms. Default 5,000. Zero takes each packet on its way for a silent
    /// peer, and is refused. Cost: a system call per stream and `beat_interval_ms`, two for one
    /// whose peer has not acknowledged all.
    pub ack_max_ms: u64,
    /// Longest life of a stream, in ms; it ends up to a fifth earlier, and its reader comes back at
    /// once. Default 3,600,000. At least five times `beat_interval_ms`. Cost: a new connection
    /// per stream and life.
    pub stream_life_ms: u64,
    /// Base of the jittered delay before a reader reconnects (`retry:`), in ms; longer while
    /// draining and when overloaded. Default 3,000. Zero is refused: a fleet of readers would
    /// reconnect in a tight loop. Costs nothing; the hold after a start grows with it.
    pub retry_ms: u64,
    /// Time over which streams are closed after SIGTERM, in ms. Default 10,000. Zero closes all at
    /// once, and all their readers return together. Costs nothing; the hold after a start grows
    /// with it.
    pub drain_ms: u64,
    /// Longest outage after which a start holds publishers online until they have had time to
    /// return, in ms; after a longer one nobody is online before a sign of life. Default 300,000.
    /// Zero: nobody ever is. Costs nothing.
    pub restart_grace_ms: u64,
    /// Most connections of one shard, streams included. Default 100,000. Zero is refused. Cost: one
    /// file descriptor and the kernel's 4 KB each, and at most 160 bytes of greendot's memory while
    /// idle.
    pub conns_max: usize,
    /// Most connections of one shard that one client address may have, of IPv6 one /64; streams, of
    /// clients of `trusted_proxies`. Default 0: a quarter of `conns_max`. Loopback addresses and
    /// operators' connections do not count. Cost: 4 bytes a connection that counts, and some 40 an
    /// address.
    pub conns_per_address_max: usize,
    /// Longest request line and headers in bytes. Default 8,192. At least 1,024. Cost: so much
    /// memory per connection that is still sending its head.
    pub head_bytes_max: usize,
    /// Most headers of one request. Default 64. Zero is refused: HTTP/1.1 needs Host. Cost: a few
    /// bytes of stack each.
    pub header_count_max: usize,
    /// Longest request body in bytes, decoded. Default 1,048,576. Zero is refused. Cost: so much
    /// memory per connection that is still sending its body.
    pub body_bytes_max: usize,
    /// Time for a whole request to arrive, in ms from accept or, of a later request, from its first
    /// byte; never extended by a byte. Default 10,000. Zero is refused. Costs nothing; it bounds
    /// what a slow sender can hold.
    pub request_deadline_ms: u64,
    /// Time that a connection may wait between two requests, in ms. Default 75,000. Zero closes
    /// after each answer. Cost: a connection each.
    pub keep_alive_idle_ms: u64,
    /// Most publishers that one stream may watch. Default 10,000. Zero is refused. Cost: at most 16
    /// bytes each.
    pub watches_per_stream_max: usize,
    /// Most watches of one shard. Default 50,000,000. At least `watches_per_stream_max`. Cost: at
    /// most 16 bytes each, when used.
    pub watches_per_shard_max: usize,
    /// Most bytes that the names of users without a slot who are watched may take on one shard,
    /// with what each costs beside its text. Default 256 MiB. Zero lets nobody be watched before
    /// its first beat. Cost: so much memory, when used; each watch by name 16 bytes beside that.
    pub names_bytes_max: usize,
    /// Most users in one presence query, beat or leave over HTTP. Default 1,000. Zero is refused.
    /// Cost: some 200 bytes of answer each, written in one turn.
    pub query_users_max: usize,
    /// Most users in queries and beats of one shard of a real-time node that wait for presence
    /// nodes. Default 65,536. Zero is refused; one call finds room when no other waits. Cost: some
    /// 300 bytes each, when used.
    pub passed_users_max: usize,
    /// Most goodbyes of one shard's users that wait for their `after_ms`, and at a presence node as
    /// many that wait for real-time nodes. Default 65,536. Zero is refused. Cost: some 150 bytes
    /// each, when used.
    pub leaves_put_off_max: usize,
    /// Most users who are being forgotten: whose slots may not be another's yet. Default 65,536.
    /// Zero is refused. Cost: some 200 bytes each, when used.
    pub users_leaving_max: usize,
    /// Most new users made in a second by all shards of the node, after a second's worth at once.
    /// Default 50,000. Zero: no such limit. Costs nothing: users are for good, so what it bounds is
    /// how soon a fault fills `users_max`.
    pub new_users_per_second_max: usize,
    /// The same, of one connection, or of one client whom a proxy names; requests of nodes and
    /// services are not counted. Default 2,000. Zero: no such limit. Cost: 40 bytes for each that
    /// has just made some.
    pub new_users_per_conn_second_max: usize,
    /// Bytes that may be encoded for one stream and not yet written to its socket. Default 65,536.
    /// Beyond it nothing more is encoded and only marks are kept. Cost: so much memory per reader
    /// that is slower than its events.
    pub outbox_bytes_max: usize,
    /// Bytes of requests that have not been answered and of answers and events that have not been
    /// written, on one shard. Default 256 MiB. At
    /// least [`Settings::buffer_bytes_floor`]. Beyond it, long requests
    /// are refused and streams are told in small pieces. Cost: so much memory, when used.
    pub buffer_bytes_max: usize,
    /// Time that a peer may acknowledge nothing while bytes are waiting, in ms; then it is evicted.
    /// Also the sockets' TCP_USER_TIMEOUT. Default 30,000. Zero is refused. Cost: a dead peer is
    /// held so long.
    pub write_stall_max_ms: u64,
    /// Time for which a refused request's remaining bytes are read and dropped, in ms, so that the
    /// client reads the refusal before its own sending fails. Default 1,000. Zero closes at once.
    /// Cost: a connection for so long.
    pub linger_ms: u64,
    /// Time after which a turn begins no more work, in ms: what is left over waits for the next,
    /// which begins at once. Each step of a turn has its share, and does at least one slice of its
    /// work. Default 10. Zero is refused. Costs nothing; smaller values let bursts of one kind wait
    /// longer.
    pub turn_ms_max: u64,
    /// Most watches that one slice of work marks or ends, and most that a turn marks where their
    /// transition is told. A request of more bytes than a quarter of it has a slice of its own.
    /// Default 4,096, some half a millisecond. Zero is refused. Costs nothing.
    pub work_per_slice_max: usize,
    /// Most slots swept in one turn. Default 1,048,576, some half a millisecond. Zero is refused.
    /// Cost: time per turn.
    pub sweep_slots_per_turn_max: usize,
    /// Most outboxes flushed in one turn. Default 1,024, some ten milliseconds of `send`. Zero is
    /// refused. Cost: time per turn.
    pub flushes_per_turn_max: usize,
    /// Most pieces of mail from other shards handled in one turn. Default 1,024. Zero is refused.
    /// Cost: time per turn.
    pub mail_per_turn_max: usize,
    /// Most beats (and goodbyes) received in one turn; a refused datagram counts as one. Default
    /// 16,384: some two milliseconds in full datagrams, some fifteen in datagrams of one. Zero is
    /// refused. Cost: time per turn. The last system call of a turn may bring more; those are
    /// worked through too.
    pub beats_per_turn_max: usize,
    /// Most pieces of mail waiting for one shard; when full, that shard reads the published states
    /// anew instead. Default 4,096. Zero is refused. Cost: a few hundred bytes each while waiting.
    pub mailbox_max: usize,
    /// Most bytes that edits of watch lists waiting for one shard may hold together; beyond, they
    /// are refused, and nothing else is. Default 16 MiB. Zero lets one wait at a time. Cost: twice
    /// so much memory at most, when used.
    pub mailbox_bytes_max: usize,
    /// Web origins whose pages may call the API: `scheme://host[:port]`, `loopback` for those of
    /// this machine, or `*` for any. Default none, so that only pages served by greendot itself
    /// can; a node that listens on a loopback address makes that `loopback`. Costs nothing.
    pub cors_origins: Vec<String>,
    /// Names under which the server is known, beside addresses, names without a dot and those that
    /// end in `.localhost`, `.local` or `.internal`; `*.example.com` for all below, `*` for any.
    /// Default none. Costs a comparison each per request that is for another name.
    pub host: Vec<String>,
    /// Proxies that are believed when they name a client's address. Default none. Costs a
    /// comparison each per connection, and a second look at the headers of a stream that one of
    /// them asks for.
    pub trusted_proxies: Vec<IpNet>,
}

static DEFAULT: Settings = Settings {
    beat_interval_ms: 10_000,
    offline_after_ms: 25_000,
    sweep_interval_ms: 250,
    beat_skew_max_ms: 30_000,
    device_key_epoch_ms: 86_400_000,
    forget_after: 0,
    away_after: 300_000,
    flap_transitions_max: 0,
    mass_offline_hold_ms: 0,
    keep_alive_ms: 15_000,
    ack_max_ms: 5_000,
    stream_life_ms: 3_600_000,
    retry_ms: 3_000,
    drain_ms: 10_000,
    restart_grace_ms: 300_000,
    conns_max: 100_000,
    conns_per_address_max: 0,
    head_bytes_max: 8_192,
    header_count_max: 64,
    body_bytes_max: 1_048_576,
    request_deadline_ms: 10_000,
    keep_alive_idle_ms: 75_000,
    watches_per_stream_max: 10_000,
    watches_per_shard_max: 50_000_000,
    names_bytes_max: 256 << 20,
    query_users_max: 1_000,
    passed_users_max: 65_536,
    leaves_put_off_max: 65_536,
    users_leaving_max: 65_536,
    new_users_per_second_max: 50_000,
    new_users_per_conn_second_max: 2_000,
    outbox_bytes_max: 65_536,
    buffer_bytes_max: 256 << 20,
    write_stall_max_ms: 30_000,
    linger_ms: 1_000,
    turn_ms_max: 10,
    work_per_slice_max: 4_096,
    sweep_slots_per_turn_max: 1_048_576,
    flushes_per_turn_max: 1_024,
    mail_per_turn_max: 1_024,
    beats_per_turn_max: 16_384,
    mailbox_max: 4_096,
    mailbox_bytes_max: 16 << 20,
    cors_origins: Vec::new(),
    host: Vec::new(),
    trusted_proxies: Vec::new(),
};

static TINY: Settings = Settings {
    beat_interval_ms: 1_000,
    offline_after_ms: 2_500,
    sweep_interval_ms: 100,
    beat_skew_max_ms: 3_000,
    device_key_epoch_ms: 60_000,
    forget_after: 0,
    away_after: 300_000,
    flap_transitions_max: 0,
    mass_offline_hold_ms: 0,
    keep_alive_ms: 1_500,
    ack_max_ms: 500,
    stream_life_ms: 15_000,
    retry_ms: 300,
    drain_ms: 1_000,
    restart_grace_ms: 300_000,
    conns_max: 12,
    conns_per_address_max: 0,
    head_bytes_max: HEAD_BYTES_FLOOR,
    header_count_max: 8,
    body_bytes_max: 1_024,
    request_deadline_ms: 1_000,
    keep_alive_idle_ms: 2_000,
    watches_per_stream_max: 6,
    watches_per_shard_max: 24,
    names_bytes_max: 1 << 20,
    query_users_max: 4,
    passed_users_max: 6,
    leaves_put_off_max: 2,
    users_leaving_max: 8,
    new_users_per_second_max: 0,
    new_users_per_conn_second_max: 0,
    outbox_bytes_max: OUTBOX_BYTES_FLOOR,
    buffer_bytes_max: 4 * OUTBOX_BYTES_FLOOR,
    write_stall_max_ms: 3_000,
    linger_ms: 100,
    turn_ms_max: 2,
    work_per_slice_max: 2,
    sweep_slots_per_turn_max: 64,
    flushes_per_turn_max: 2,
    mail_per_turn_max: 2,
    beats_per_turn_max: 2,
    mailbox_max: 3,
    mailbox_bytes_max: 200,
    cors_origins: Vec::new(),
    host: Vec::new(),
    trusted_proxies: Vec::new(),
};

// Both presets are right by construction: what `check` demands of a configuration holds for them
// when this compiles.
const _: () =
    assert!(EVENT_BYTES_MAX + STREAM_HEAD_BYTES_MAX + HELLO_BYTES_MAX <= DEFAULT.outbox_bytes_max);
const _: () = assert!(ORIGIN_BYTES_MAX * 2 < STREAM_HEAD_BYTES_MAX);
const _: () =
    assert!(DEFAULT.head_bytes_max >= HEAD_BYTES_FLOOR && TINY.head_bytes_max >= HEAD_BYTES_FLOOR);
const _: () = assert!(DEFAULT.offline_after_ms >= 2 * DEFAULT.beat_interval_ms);
const _: () = assert!(TINY.offline_after_ms >= 2 * TINY.beat_interval_ms);
const _: () = assert!(2 * DEFAULT.sweep_interval_ms <= DEFAULT.offline_after_ms);
const _: () = assert!(
    DEFAULT.beat_skew_max_ms >= ANCHOR_TOLERANCE_MS && TINY.beat_skew_max_ms >= ANCHOR_TOLERANCE_MS
);
const _: () = assert!(DEFAULT.watches_per_stream_max <= DEFAULT.watches_per_shard_max);

impl Default for Settings {
    fn default() -> Self {
        DEFAULT.clone()
    }
}

impl Settings {
    /// Every cap within reach of a short simulated run, and time ten times as fast.
    pub fn tiny() -> Settings {
        TINY.clone()
    }

    /// Most bytes of a query string and a body that are worked through where they are read: as
    /// much work as a slice, if users' ids are short. What is longer waits for a slice of its own.
    pub fn request_bytes_at_once(&self) -> usize {
        self.work_per_slice_max / 4
    }

    /// The least that `buffer_bytes_max` may be: one longest request finds room, whose buffer has
    /// doubled, and one stream that has been told all that it may be at once.
    pub fn buffer_bytes_floor(&self) -> usize {
        let request = self.head_bytes_max.saturating_add(self.body_bytes_max);
        request
            .saturating_mul(2)
            .saturating_add(self.outbox_bytes_max)
    }

    /// What a sweep does beside comparing.
    pub(super) fn sweep_rules(&self) -> SweepRules {
        SweepRules {
            flap_transitions_max: self.flap_transitions_max as u32,
            mass_silence: MassSilenceRule::new(
                self.beat_interval_ms,
                self.offline_after_ms,
                self.mass_offline_hold_ms,
            ),
        }
    }

    /// The request heads that are taken.
    pub fn request_limits(&self) -> RequestLimits {
        RequestLimits {
            head_bytes_max: self.head_bytes_max,
            header_count_max: self.header_count_max,
            body_bytes_max: self.body_bytes_max,
        }
    }
}
