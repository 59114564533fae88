//! Device keys: what a device signs its beats with that is trusted with one user alone.
//!
//! Owns how such a key is derived from a fleet key, and what a datagram says so that whoever
//! receives it can derive it too: which epoch, whose and which device it is. Nothing is kept of a
//! device. Epochs pass with time; the one before and the one behind the present one count, so that
//! neither a clock that is off nor a step from one to the next refuses anybody.
//!
//! ```text
//! at  bytes
//! 0      16  as of any datagram; the top bit of the key id is set, the rest names the fleet key
//! 16      4  epoch
//! 20      1  length of the device's name
//! 21     ..  the device's name
//! ..     ..  one entry: the user
//! end    16  MAC
//! ```

use super::{Flags, FleetKey, HEAD_BYTES, Keys, MAC_BYTES, MAGIC, VERSION, truncated};
use crate::time::Unix;
use crate::wire::json::write_str;
use crate::wire::user::USER_BYTES_MAX;
use crate::wire::{User, UserBuf, UserFault};

/// Longest name of a device in bytes.
pub const DEVICE_BYTES_MAX: usize = 64;
/// Bit of a key id: it is a device's.
pub(super) const DEVICE_BIT: u32 = 1 << 31;

/// BLAKE3 `derive_key` context of an epoch's key. From it a device's is made by a keyed hash of its
/// user and its name.
const CONTEXT: &str = "greendot 2026 device key v1";
/// Epochs whose keys count.
const EPOCHS: usize = 3;

/// The key of one device of one user.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceKey {
    bytes: [u8; 32],
    /// As a datagram names it.
    id: u32,
    epoch: u32,
    user: UserBuf,
    device: UserBuf,
}

/// What all devices' keys of three epochs are made of.
#[derive(Debug)]
pub struct Epochs {
    length_ms: u64,
    /// The present one.
    epoch: u64,
    /// For each fleet key: those of the epoch before, of the present one and of the next.
    roots: Vec<(u32, [[u8; 32]; EPOCHS])>,
}

/// What a datagram says of its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender<'d> {
    /// Its key's epoch.
    pub epoch: u32,
    /// Its name, which is one if the MAC holds: no key is made for another.
    pub device: &'d [u8],
}

/// Checks the name of a device: as a user's id, and half as long.
///
/// Errors: what is wrong with it.
pub fn device_name(name: &[u8]) -> Result<User<'_>, UserFault> {
    match name.len() {
        ..=DEVICE_BYTES_MAX => User::parse(name),
        _ => Err(UserFault::TooLong),
    }
}

impl Epochs {
    /// Epochs of so many ms, at this moment.
    pub fn new(keys: &Keys, length_ms: u64, now: Unix) -> Epochs {
        let mut epochs = Epochs {
            length_ms: length_ms.max(1),
            epoch: 0,
            roots: Vec::new(),
        };
        epochs.go_on(keys, now);
        epochs
    }

    /// It is later now, and these may be other fleet keys.
    pub fn go_on(&mut self, keys: &Keys, now: Unix) {
        let epoch = now.ms() / self.length_ms;
        let ids = self.roots.iter().map(|(id, _)| *id);
        // A key names itself.
        if epoch == self.epoch && ids.eq(keys.iter().map(FleetKey::id)) {
            return;
        }
        self.epoch = epoch;
        let first = (epoch as u32).wrapping_sub(1);
        let roots = keys.iter().map(|key| {
            let root = |at| key.derived_of(CONTEXT, &first.wrapping_add(at).to_be_bytes());
            (key.id(), [root(0), root(1), root(2)])
        });
        self.roots = roots.collect();
    }

    /// The present key of a device, and until when it counts.
    pub fn key_of(&self, user: User<'_>, device: User<'_>) -> (DeviceKey, Unix) {
        let (id, [_, present, _]) = self.roots[0];
        let key = DeviceKey {
            bytes: derive(&present, user, device.as_bytes()),
            id: id | DEVICE_BIT,
            epoch: self.epoch as u32,
            user: user.into(),
            device: device.into(),
        };
        // So long the epoch is the present one, or the one before.
        (key, self.begin_of(self.epoch + 2))
    }

    /// When the epoch of a device's key began: what is barred from then on bars the key.
    pub fn began(&self, epoch: u32) -> Unix {
        let ahead = i64::from(epoch.wrapping_sub(self.epoch as u32).cast_signed());
        self.begin_of(self.epoch.saturating_add_signed(ahead))
    }

    fn begin_of(&self, epoch: u64) -> Unix {
        Unix::from_ms(epoch.saturating_mul(self.length_ms))
    }

    /// What the keys of this epoch are made of, if it counts.
    fn root(&self, id: u32, epoch: u32) -> Option<&[u8; 32]> {
        let behind = (self.epoch as u32).wrapping_add(1).wrapping_sub(epoch);
        let at = (EPOCHS - 1).checked_sub(behind as usize)?;
        let (_, roots) = self.roots.iter().find(|(other, _)| *other == id)?;
        Some(&roots[at])
    }

    /// The MAC that a datagram of this sender has, of all bytes before it.
    pub(super) fn mac(
        &self,
        id: u32,
        sender: Sender<'_>,
        user: User<'_>,
        signed: &[u8],
    ) -> Option<[u8; MAC_BYTES]> {
        let root = self.root(id & !DEVICE_BIT, sender.epoch)?;
        let key = derive(root, user, sender.device);
        Some(truncated(blake3::keyed_hash(&key, signed)))
    }
}

/// What stands between the head of a device's datagram and its entries, and what follows.
pub(super) fn split(bytes: &[u8]) -> Option<(Sender<'_>, &[u8])> {
    let (epoch, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first()?;
    let (device, entries) = rest.split_at_checked(usize::from(*length))?;
    let sender = Sender {
        epoch: u32::from_be_bytes(*epoch),
        device,
    };
    let is_name = (1..=DEVICE_BYTES_MAX).contains(&device.len());
    is_name.then_some((sender, entries))
}

/// One hash of one block, if both names are short.
fn derive(root: &[u8; 32], user: User<'_>, device: &[u8]) -> [u8; 32] {
    let user = user.as_bytes();
    let end = 1 + user.len() + device.len();
    let mut short = [0; 64];
    let mut long = [0; 1 + USER_BYTES_MAX + DEVICE_BYTES_MAX];
    let names = if end <= short.len() {
        &mut short[..end]
    } else {
        &mut long[..end]
    };
    names[0] = user.len() as u8;
    names[1..=user.len()].copy_from_slice(user);
    names[1 + user.len()..].copy_from_slice(device);
    *blake3::keyed_hash(root, names).as_bytes()
}

impl DeviceKey {
    /// Its epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whose it is.
    pub fn user(&self) -> User<'_> {
        self.user.user()
    }

    /// Of which device.
    pub fn device(&self) -> User<'_> {
        self.device.user()
    }

    /// Appends what a device is told, as JSON: whose key it is, the key, and what its datagrams
    /// have to say.
    pub fn write(&self, valid_until: Unix, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"user\":");
        write_str(self.user.as_str(), out);
        out.extend_from_slice(b",\"device\":");
        write_str(self.device.as_str(), out);
        let key = blake3::Hash::from_bytes(self.bytes).to_hex();
        let rest = format!(
            ",\"epoch\":{},\"key_id\":\"{:08x}\",\"key\":\"{key}\",\"valid_until\":{}}}",
            self.epoch,
            self.id,
            valid_until.ms()
        );
        out.extend_from_slice(rest.as_bytes());
    }

    /// Reads what [`DeviceKey::write`] wrote, whatever else there is beside it, and until when the
    /// key counts.
    pub fn read(json: &[u8]) -> Option<(DeviceKey, Unix)> {
        let said: serde_json::Value = serde_json::from_slice(json).ok()?;
        let text = |name: &str| said.get(name)?.as_str();
        let number = |name: &str| said.get(name)?.as_u64();
        let key = DeviceKey {
            bytes: *blake3::Hash::from_hex(text("key")?).ok()?.as_bytes(),
            id: u32::from_str_radix(text("key_id")?, 16).ok()?,
            epoch: u32::try_from(number("epoch")?).ok()?,
            user: UserBuf::from_text(text("user")?).ok()?,
            device: device_name(text("device")?.as_bytes()).ok()?.into(),
        };
        let is_of_device = key.id & DEVICE_BIT != 0;
        is_of_device.then_some((key, Unix::from_ms(number("valid_until")?)))
    }

    /// The device's beat, or its goodbye.
    pub fn datagram(&self, leave: bool, sent_at: Unix) -> Vec<u8> {
        let (device, user) = (self.device().as_bytes(), self.user().as_bytes());
        let mut bytes = Vec::with_capacity(HEAD_BYTES + 6 + device.len() + user.len() + MAC_BYTES);
        bytes.extend_from_slice(&MAGIC);
        let flags = if leave { Flags::LEAVE } else { Flags::BEAT };
        bytes.extend_from_slice(&[VERSION, flags.byte()]);
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(&sent_at.ms().to_be_bytes());
        bytes.extend_from_slice(&self.epoch.to_be_bytes());
        for name in [device, user] {
            bytes.push(name.len() as u8);
            bytes.extend_from_slice(name);
        }
        let mac = truncated(blake3::keyed_hash(&self.bytes, &bytes));
        bytes.extend_from_slice(&mac);
        bytes
    }
}

impl std::fmt::Debug for DeviceKey {
    /// All but the key: it must not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceKey")
            .field("id", &self.id)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::beat::{BeatDrop, Writer, open, open_any};

    const DAY_MS: u64 = 86_400_000;
    const NOON: Unix = Unix::from_ms(20_000 * DAY_MS + DAY_MS / 2);

    fn fleet(byte: &str) -> String {
        byte.repeat(32)
    }

    fn keys(lines: &[&str]) -> Keys {
        let lines: Vec<String> = lines.iter().map(|byte| fleet(byte)).collect();
        Keys::parse(&lines.join("\n")).unwrap()
    }

    fn epochs(lines: &[&str], now: Unix) -> Epochs {
        Epochs::new(&keys(lines), DAY_MS, now)
    }

    fn user(text: &str) -> User<'_> {
        User::from_text(text).unwrap()
    }

    /// Who is taken to beat, and which device.
    fn opened(datagram: &[u8], epochs: &Epochs, now: Unix) -> Result<(String, String), BeatDrop> {
        let beats = open_any(datagram, &keys(&["11"]), epochs, now, u64::MAX)?;
        let users: Vec<String> = beats.users().map(|user| user.as_str().to_owned()).collect();
        let device = beats.sender.expect("a device's").device;
        Ok((users.concat(), String::from_utf8(device.to_vec()).unwrap()))
    }

    #[test]
    fn a_device_beats_for_its_user() {
        let epochs = epochs(&["11"], NOON);
        for (name, device) in [("alice", "phone"), ("é", "téléphone"), ("a", "b")] {
            let (key, until) = epochs.key_of(user(name), user(device));
            assert_eq!(until.ms(), 20_002 * DAY_MS);
            for leave in [false, true] {
                let datagram = key.datagram(leave, NOON);
                let who = (name.to_owned(), device.to_owned());
                assert_eq!(opened(&datagram, &epochs, NOON), Ok(who));
                let beats = open_any(&datagram, &keys(&["11"]), &epochs, NOON, 0).unwrap();
                assert_eq!((beats.flags.is_leave(), beats.sent_at), (leave, NOON));
                let fleet_only = open(&datagram, &keys(&["11"]), NOON, 0);
                assert_eq!(fleet_only.err(), Some(BeatDrop::Key));
            }
        }
    }

    #[test]
    fn the_key_is_part_of_the_wire_format() {
        let epochs = epochs(&["07"], NOON);
        let (key, until) = epochs.key_of(user("alice"), user("phone"));
        let mut json = Vec::new();
        key.write(until, &mut json);
        let text = String::from_utf8(json).unwrap();
        let id = FleetKey::new([7; 32]).id() | DEVICE_BIT;
        let begin = format!(
            "{{\"user\":\"alice\",\"device\":\"phone\",\"epoch\":20000,\"key_id\":\"{id:08x}\",\
             \"key\":\""
        );
        let (key_text, rest) = text.strip_prefix(&begin).expect(&text).split_at(64);
        assert_eq!(rest, "\",\"valid_until\":1728172800000}");
        // As anybody can derive it who has the fleet key.
        let root = blake3::Hasher::new_derive_key("greendot 2026 device key v1")
            .update(&[7; 32])
            .update(&20_000_u32.to_be_bytes())
            .finalize();
        let derived = blake3::keyed_hash(root.as_bytes(), b"\x05alicephone");
        assert_eq!(key_text, derived.to_hex().as_str());
        assert_eq!(DeviceKey::read(text.as_bytes()), Some((key, until)));
        for bad in ["", "{}", "[]", &text.replace("\"epoch\":2", "\"epoch\":-2")] {
            assert_eq!(DeviceKey::read(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_device_speaks_for_nobody_else() {
        let epochs = epochs(&["11"], NOON);
        let (key, _) = epochs.key_of(user("alice"), user("phone"));
        let good = key.datagram(false, NOON);
        let signed = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let mac = blake3::keyed_hash(&key.bytes, &bytes);
            bytes.extend_from_slice(&mac.as_bytes()[..MAC_BYTES]);
            bytes
        };
        let body = &good[..good.len() - MAC_BYTES];
        assert_eq!(signed(body), good);
        let other = [&body[..body.len() - 5], b"bobby"].concat();
        assert_eq!(opened(&signed(&other), &epochs, NOON), Err(BeatDrop::Mac));
        let two = [body, b"\x03bob"].concat();
        assert_eq!(opened(&signed(&two), &epochs, NOON), Err(BeatDrop::Entry));
        let none = &body[..body.len() - 6];
        assert_eq!(opened(&signed(none), &epochs, NOON), Err(BeatDrop::Entry));
        let tablet = [&body[..21], b"table", &body[26..]].concat();
        assert_eq!(opened(&signed(&tablet), &epochs, NOON), Err(BeatDrop::Mac));
        // Where one name ends and the other begins is part of the key.
        let key_of = |name: &str, device: &str| epochs.key_of(user(name), user(device)).0.bytes;
        assert!(key_of("ab", "c") != key_of("a", "bc"));
        for at in 0..good.len() * 8 {
            let mut torn = good.clone();
            torn[at / 8] ^= 1 << (at % 8);
            assert!(opened(&torn, &epochs, NOON).is_err(), "bit {at}");
        }
        for at in 0..good.len() {
            assert!(opened(&good[..at], &epochs, NOON).is_err(), "{at} bytes");
        }
        // Nor does it sign as the fleet.
        let fleet = FleetKey::new([0x11; 32]);
        let mut beat = Writer::new(false, NOON, &fleet);
        assert!(beat.push(user("alice")));
        let mut beat = beat.seal(&fleet);
        assert!(open_any(&beat, &keys(&["11"]), &epochs, NOON, 0).is_ok());
        beat[4] |= 0x80;
        assert!(opened(&beat, &epochs, NOON).is_err());
    }

    /// A key counts in its own epoch, in the one behind it, and in the one before, whose clock may
    /// be behind.
    #[test]
    fn one_epoch_ahead_and_one_behind_count() {
        let (key, until) = epochs(&["11"], NOON).key_of(user("alice"), user("phone"));
        let datagram = key.datagram(false, NOON);
        let begin = 20_000 * DAY_MS;
        for (ms, counts) in [
            (begin - DAY_MS - 1, false),
            (begin - DAY_MS, true),
            (begin, true),
            (until.ms() - 1, true),
            (until.ms(), false),
        ] {
            let now = Unix::from_ms(ms);
            let expected = if counts { None } else { Some(BeatDrop::Key) };
            let fresh = epochs(&["11"], now);
            assert_eq!(opened(&datagram, &fresh, now).err(), expected, "{ms}");
            let mut kept = epochs(&["22"], NOON);
            kept.go_on(&keys(&["11"]), now);
            assert_eq!(opened(&datagram, &kept, now).err(), expected, "{ms} kept");
        }
        // What is barred from a moment on bars the keys of its epoch and of those before.
        let epochs = epochs(&["11"], NOON);
        for (epoch, began) in [
            (19_999, begin - DAY_MS),
            (20_000, begin),
            (20_001, begin + DAY_MS),
        ] {
            assert_eq!(epochs.began(epoch).ms(), began);
        }
    }

    /// Add a key everywhere, move it first, remove the old one: no device is refused.
    #[test]
    fn fleet_keys_are_changed_in_three_steps() {
        let old = epochs(&["11"], NOON).key_of(user("alice"), user("phone")).0;
        let new = epochs(&["22", "11"], NOON)
            .key_of(user("alice"), user("phone"))
            .0;
        for (lines, takes) in [
            (&["11"][..], [true, false]),
            (&["11", "22"], [true, true]),
            (&["22", "11"], [true, true]),
            (&["22"], [false, true]),
        ] {
            let epochs = epochs(lines, NOON);
            let taken = [&old, &new].map(|key| opened(&key.datagram(false, NOON), &epochs, NOON));
            assert_eq!(taken.map(|it| it.is_ok()), takes, "{lines:?}");
        }
    }
}
