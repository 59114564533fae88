//! Memory: what the limits allow at worst, held against the control group's.
//!
//! Owns what each limit may cost, the sentence that says it, and how limits that nobody has set are
//! made to fit. Reads nothing of the machine but how long a store is already.

use super::judge::KERNEL_BYTES_PER_CONN;
use super::{Found, conns_max};
use crate::config::{Config, RoleName};
use crate::store::MemoryChoice;

/// Of one idle stream's own record and tables, in bytes (docs/PERFORMANCE.md has 88).
const CONN_BYTES: u64 = 160;
/// Of one that speaks TLS, beside that (docs/PERFORMANCE.md has 2,794).
const TLS_CONN_BYTES: u64 = 3_072;
/// Of one watch (`Settings::watches_per_shard_max`).
pub(super) const WATCH_BYTES: u64 = 16;
/// Of a user beside the store's files, which the kernel can write out and take back: index and
/// bitmaps (docs/PERFORMANCE.md has 13).
const USER_BYTES: u64 = 16;
/// Of a user's cells and id, where these are not in files: two words, and an id of 25 bytes.
const CELLS_BYTES: u64 = 41;
/// Of one revocation (`IdentityConfig::revocations_max`).
const REVOCATION_BYTES: u64 = 120;
/// The program, its threads and what the heap keeps.
const PROCESS_BYTES: u64 = 32 << 20;
/// Part of a group's memory that is left free, as one in so many: what is computed is no more than
/// that, and the kernel has more tables than are counted here.
const FREE: u64 = 10;

/// Of one idle connection beside the kernel's share, at worst.
pub(super) fn user_bytes_per_conn(config: &Config) -> u64 {
    match config.tls.https {
        Some(_) => CONN_BYTES + TLS_CONN_BYTES,
        None => CONN_BYTES,
    }
}

/// What one limit may cost.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Part {
    /// The limit's flag.
    flag: &'static str,
    /// What it is set to.
    count: u64,
    /// Bytes of each, on all shards.
    each: u64,
    /// What it is not made less than.
    floor: u64,
}

impl Part {
    fn bytes(&self) -> u64 {
        self.count.saturating_mul(self.each)
    }
}

/// What the limits of a configuration may cost at worst.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Worst {
    parts: Vec<Part>,
}

impl Worst {
    /// `conns`: connections of one shard, as many as descriptors allow.
    fn of(config: &Config, shards: u16, conns: usize) -> Worst {
        let settings = &config.settings;
        let shards = u64::from(shards);
        let part = |flag, count: usize, each, floor| Part {
            flag,
            count: count as u64,
            each,
            floor,
        };
        let on_each = |flag, count, each, floor| part(flag, count, each * shards, floor);
        let holds_streams = config.role != RoleName::Presence;
        let is_follower = matches!(config.role, RoleName::Realtime | RoleName::Fleet);
        let mut user_bytes = USER_BYTES;
        if config.role == RoleName::Fleet {
            // What is heard beside what is told.
            user_bytes += CELLS_BYTES;
        }
        if is_follower || config.memory != MemoryChoice::Off {
            user_bytes += CELLS_BYTES;
        }
        let conn_bytes = user_bytes_per_conn(config) + KERNEL_BYTES_PER_CONN;
        let mut parts = vec![
            on_each("conns-max", conns, conn_bytes, 256),
            part(
                "users-max",
                config.users_max as usize,
                user_bytes,
                known_users(config),
            ),
            on_each("mailbox-bytes-max", settings.mailbox_bytes_max, 1, 1 << 20),
            on_each(
                "buffer-bytes-max",
                settings.buffer_bytes_max,
                1,
                settings.buffer_bytes_floor() as u64,
            ),
        ];
        if holds_streams {
            let watches = settings.watches_per_shard_max;
            let least = settings.watches_per_stream_max as u64;
            parts.push(on_each(
                "watches-per-shard-max",
                watches,
                WATCH_BYTES,
                least,
            ));
            parts.push(on_each(
                "names-bytes-max",
                settings.names_bytes_max,
                1,
                1 << 20,
            ));
        }
        if !config.identity.jwt_keys.is_empty() {
            let identity = &config.identity;
            let tickets = identity.tickets_bytes_max;
            parts.push(part("tickets-bytes-max", tickets, 1, 1 << 20));
            let revocations = identity.revocations_max as usize;
            parts.push(part(
                "revocations-max",
                revocations,
                REVOCATION_BYTES,
                1_024,
            ));
        }
        Worst { parts }
    }

    /// All of it, the process itself included.
    fn bytes(&self) -> u64 {
        let parts = self.parts.iter().map(Part::bytes);
        parts.fold(PROCESS_BYTES, u64::saturating_add)
    }

    /// One line for the log: the whole, and what makes it up.
    fn line(&self) -> String {
        let mut parts: Vec<_> = self.parts.iter().collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes()));
        let told: Vec<_> = parts
            .iter()
            .map(|part| format!("{} {} MiB", part.flag, part.bytes() >> 20))
            .collect();
        let whole = self.bytes() >> 20;
        format!("at most {whole} MiB: {}", told.join(", "))
    }

    /// Makes those limits smaller that `may_change` names, alike and no further than their floors,
    /// until all fit into `max` bytes with a tenth to spare. Returns what was changed.
    ///
    /// Errors: the others and the floors do not fit; says what to do.
    fn fit(&mut self, max: u64, may_change: impl Fn(&str) -> bool) -> Result<Vec<Part>, String> {
        let room = max - max / FREE;
        if self.bytes() <= room {
            return Ok(Vec::new());
        }
        let (open, fixed): (Vec<_>, Vec<_>) = self
            .parts
            .iter_mut()
            .partition(|part| may_change(part.flag));
        let fixed: u64 = fixed.iter().map(|part| part.bytes()).sum();
        let mut room = room.checked_sub(PROCESS_BYTES + fixed);
        let mut open: Vec<&mut Part> = open;
        let mut changed = Vec::new();
        // Those whose share is below their floor take more of the room, and the others share the
        // rest anew.
        loop {
            let wanted: u64 = open.iter().map(|part| part.bytes()).sum();
            let Some(left) = room else { break };
            let share = |part: &Part| {
                (u128::from(part.count) * u128::from(left) / u128::from(wanted.max(1))) as u64
            };
            let short = open.iter().position(|part| share(part) < part.floor);
            let Some(short) = short else {
                for part in open {
                    part.count = share(part).min(part.count);
                    changed.push(part.clone());
                }
                return Ok(changed);
            };
            let part = open.swap_remove(short);
            part.count = part.floor.min(part.count);
            changed.push(part.clone());
            room = left.checked_sub(part.bytes());
        }
        let mib = max >> 20;
        let line = self.line();
        Err(format!(
            "the control group has {mib} MiB of memory, of which a tenth stays free; the limits \
             take {line}; set smaller ones, or give it more"
        ))
    }
}

/// Users that a store may have already.
fn known_users(config: &Config) -> u64 {
    let stamps = std::fs::metadata(config.data_dir.join("stamps.map"));
    let cells = stamps.map_or(0, |stamps| stamps.len() / 8);
    cells.max(4_096)
}

/// Makes limits that nobody has set (`is_default`, by flag) fit into the control group that was
/// found. Returns what was done, a sentence each.
///
/// Errors: what was set does not fit; says what to do.
pub fn fit_memory(
    config: &mut Config,
    found: &Found,
    is_default: impl Fn(&str) -> bool,
) -> Result<Vec<String>, String> {
    let Some(max) = found.memory_max else {
        return Ok(Vec::new());
    };
    let shards = config.shard_count();
    let conns = conns_max(config, shards, found.nofile_hard);
    fit(config, shards, conns, max, is_default)
}

/// What the limits of a configuration cost at worst, for the log.
pub fn memory_line(config: &Config, found: &Found) -> String {
    let shards = config.shard_count();
    let conns = conns_max(config, shards, found.nofile_hard);
    let of = match found.memory_max {
        Some(max) => format!(" of the control group's {} MiB", max >> 20),
        None => String::new(),
    };
    let line = Worst::of(config, shards, conns).line();
    format!("memory{of}: {line}")
}

/// Makes limits that nobody has set fit into a control group that allows `max` bytes. Returns what
/// was done, a sentence each.
///
/// Errors: what was set does not fit.
fn fit(
    config: &mut Config,
    shards: u16,
    conns: usize,
    max: u64,
    is_default: impl Fn(&str) -> bool,
) -> Result<Vec<String>, String> {
    let changed = Worst::of(config, shards, conns).fit(max, is_default)?;
    let mut told = Vec::new();
    for Part { flag, count, .. } in changed {
        let taken = usize::try_from(count).unwrap_or(usize::MAX);
        let settings = &mut config.settings;
        match flag {
            "conns-max" => settings.conns_max = taken,
            "users-max" => config.users_max = u32::try_from(count).unwrap_or(u32::MAX),
            "mailbox-bytes-max" => settings.mailbox_bytes_max = taken,
            "watches-per-shard-max" => settings.watches_per_shard_max = taken,
            "buffer-bytes-max" => settings.buffer_bytes_max = taken,
            "names-bytes-max" => settings.names_bytes_max = taken,
            "tickets-bytes-max" => config.identity.tickets_bytes_max = taken,
            "revocations-max" => {
                config.identity.revocations_max = u32::try_from(count).unwrap_or(u32::MAX);
            }
            _ => continue,
        }
        told.push(format!(
            "{flag} is {count}, less than its default, so that all fits into the control group's \
             {} MiB; set it to have another",
            max >> 20
        ));
    }
    told.sort();
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARDS: u16 = 2;
    const CONNS: usize = 100_000;

    fn config() -> Config {
        Config {
            data_dir: "/nowhere".into(),
            memory: MemoryChoice::Off,
            ..Config::default()
        }
    }

    #[test]
    fn what_the_limits_cost() {
        let worst = Worst::of(&config(), SHARDS, CONNS);
        let parts: Vec<_> = worst
            .parts
            .iter()
            .map(|part| (part.flag, part.bytes()))
            .collect();
        assert_eq!(
            parts,
            [
                ("conns-max", 2 * 100_000 * 4_360),
                ("users-max", 16_777_216 * 16),
                ("mailbox-bytes-max", 2 * (16 << 20)),
                ("buffer-bytes-max", 2 * (256 << 20)),
                ("watches-per-shard-max", 2 * 50_000_000 * 16),
                ("names-bytes-max", 2 * (256 << 20)),
            ]
        );
        assert_eq!(
            worst.line(),
            "at most 3701 MiB: watches-per-shard-max 1525 MiB, conns-max 831 MiB, \
             buffer-bytes-max 512 MiB, names-bytes-max 512 MiB, users-max 256 MiB, \
             mailbox-bytes-max 32 MiB"
        );
    }

    #[test]
    fn roles_pay_for_what_they_have() {
        let of = |role| {
            let config = Config { role, ..config() };
            let parts = Worst::of(&config, SHARDS, CONNS).parts;
            let user = parts
                .iter()
                .find(|part| part.flag == "users-max")
                .unwrap()
                .each;
            (user, parts.len())
        };
        assert_eq!(of(RoleName::All), (16, 6));
        assert_eq!(of(RoleName::Realtime), (57, 6));
        let mut tls = config();
        tls.tls.https = Some("[::1]:443".parse().unwrap());
        let conn = Worst::of(&tls, SHARDS, CONNS).parts[0].each / u64::from(SHARDS);
        assert_eq!(conn, 4_360 + 3_072);
        assert_eq!(of(RoleName::Presence), (16, 4));
    }

    #[test]
    fn what_fits_is_left_alone() {
        let (mut fitted, before) = (config(), config());
        let told = fit(&mut fitted, SHARDS, CONNS, 8 << 30, |_| true);
        assert_eq!((told, fitted), (Ok(Vec::new()), before));
    }

    #[test]
    fn defaults_shrink_alike_until_all_fits() {
        let mut config = config();
        let told = fit(&mut config, SHARDS, CONNS, 512 << 20, |_| true).unwrap();
        assert_eq!(told.len(), 6, "{told:#?}");
        assert!(told[1].starts_with("conns-max is "), "{told:#?}");
        let worst = Worst::of(&config, SHARDS, config.settings.conns_max);
        let room = (512 << 20) / 10 * 9;
        assert!(
            (room * 99 / 100..=room).contains(&worst.bytes()),
            "{}",
            worst.line()
        );
        assert!(config.settings.watches_per_shard_max >= config.settings.watches_per_stream_max);
        assert_eq!(config.settings.check(), Ok(()));
    }

    #[test]
    fn what_was_set_stays_and_the_rest_makes_room() {
        let mut config = config();
        config.settings.conns_max = 20_000;
        let set = |flag: &str| flag == "conns-max";
        fit(&mut config, SHARDS, 20_000, 512 << 20, |flag| !set(flag)).unwrap();
        assert_eq!(config.settings.conns_max, 20_000);
        assert!(Worst::of(&config, SHARDS, 20_000).bytes() <= 512 << 20);
    }

    #[test]
    fn a_floor_takes_what_others_must_do_without() {
        let mut config = config();
        fit(&mut config, SHARDS, CONNS, 50 << 20, |_| true).unwrap();
        let settings = &config.settings;
        assert_eq!(
            [
                settings.conns_max,
                settings.names_bytes_max,
                settings.mailbox_bytes_max
            ],
            [256, 1 << 20, 1 << 20]
        );
        assert!(settings.watches_per_shard_max > settings.watches_per_stream_max);
        assert!(Worst::of(&config, SHARDS, 256).bytes() <= (50 << 20) / 10 * 9);
    }

    #[test]
    fn what_was_set_and_does_not_fit_is_refused() {
        let (mut refused, before) = (config(), config());
        let why = fit(&mut refused, SHARDS, CONNS, 512 << 20, |flag| {
            flag != "conns-max"
        });
        assert_eq!(
            why,
            Err(
                "the control group has 512 MiB of memory, of which a tenth stays free; the limits \
                 take at most 3701 MiB: watches-per-shard-max 1525 MiB, conns-max \
                 831 MiB, buffer-bytes-max 512 MiB, names-bytes-max 512 MiB, users-max 256 MiB, \
                 mailbox-bytes-max 32 MiB; set smaller ones, or give it more"
                    .into()
            )
        );
        assert_eq!(refused, before);
    }
}
