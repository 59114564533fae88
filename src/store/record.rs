//! The records of users.log, byte by byte.
//!
//! Owns their format and the scan at boot. A user's record is `len u8, slot u32, id bytes, CRC32C
//! u32` (little endian, the CRC over all before it), a tombstone `255 u8, slot u32, CRC32C u32`;
//! the first zero length byte is the end. Never touches a file.

use super::region::PAGE_BYTES;
use crate::wire::{USER_BYTES_MAX, User};

/// Where the first record begins: the header has a page of its own, so that no write of one can
/// harm the other.
pub(crate) const FIRST_RECORD: u64 = PAGE_BYTES;
/// Bytes of a record beside the id.
pub(crate) const RECORD_OVERHEAD_BYTES: usize = 1 + 4 + 4;
/// First byte of a tombstone, where a user's record has the length of its id.
const TOMBSTONE: u8 = u8::MAX;
const _: () = assert!(USER_BYTES_MAX < TOMBSTONE as usize);
pub(crate) const RECORD_BYTES_MAX: usize = RECORD_OVERHEAD_BYTES + USER_BYTES_MAX;
pub(crate) const ID_AT: u64 = 5;

/// The first thing in the log that is not a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RecordFault {
    pub(crate) offset: u64,
    pub(crate) expected: String,
    pub(crate) found: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Record<'b> {
    /// The next slot that was never given has this user.
    New { slot: u32, id: &'b [u8] },
    /// A slot that was given before has this user: if it is free, which the scan does not know.
    Again { slot: u32, id: &'b [u8] },
    /// The slot is free: its user is gone.
    Gone { slot: u32 },
}

/// What a scan found: good records of `users` slots up to `end`, and why it stopped there if not
/// for a zero length byte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Scan {
    pub(crate) users: u32,
    pub(crate) end: u64,
    pub(crate) fault: Option<RecordFault>,
}

pub(crate) fn encode(record: &mut [u8; RECORD_BYTES_MAX], slot: u32, id: &[u8]) -> usize {
    let length = id.len() + RECORD_OVERHEAD_BYTES;
    record[0] = id.len() as u8;
    record[1..5].copy_from_slice(&slot.to_le_bytes());
    record[5..5 + id.len()].copy_from_slice(id);
    let crc = crc32c::crc32c(&record[..length - 4]);
    record[length - 4..length].copy_from_slice(&crc.to_le_bytes());
    length
}

pub(crate) fn encode_tombstone(slot: u32) -> [u8; RECORD_OVERHEAD_BYTES] {
    let mut record = [TOMBSTONE; RECORD_OVERHEAD_BYTES];
    record[1..5].copy_from_slice(&slot.to_le_bytes());
    let crc = crc32c::crc32c(&record[..5]);
    record[5..].copy_from_slice(&crc.to_le_bytes());
    record
}

/// A place in the log at which the first record of `slot` begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Start {
    pub(crate) offset: u64,
    pub(crate) slot: u32,
}

/// Where the log begins.
pub(crate) const START: Start = Start {
    offset: FIRST_RECORD,
    slot: 0,
};

/// Places that part a log of about `log_bytes` into `parts` of about one length, each where a slot
/// begins that is a multiple of `group`; found by hopping from record to record and checking
/// nothing: a part is to be believed only if the scan of the one before it ends where it starts.
pub(crate) fn split(bytes: &[u8], log_bytes: u64, parts: usize, group: u32) -> Vec<Start> {
    let mut starts = vec![START];
    let mut at = START;
    for part in 1..parts as u64 {
        let wanted = START.offset + log_bytes.saturating_sub(START.offset) * part / parts as u64;
        loop {
            let Some((record_bytes, slot)) = peek(bytes, at.offset) else {
                return starts;
            };
            let is_new = slot == Some(at.slot);
            if at.offset >= wanted && is_new && at.slot.is_multiple_of(group) {
                break;
            }
            at.offset += record_bytes;
            at.slot += u32::from(is_new);
        }
        if starts.last() != Some(&at) {
            starts.push(at);
        }
    }
    starts
}

/// Length of what may be the record at `offset`, and of a user's its slot; None at the end.
fn peek(bytes: &[u8], offset: u64) -> Option<(u64, Option<u32>)> {
    let rest = bytes.get(offset as usize..)?;
    match *rest.first()? {
        0 => None,
        TOMBSTONE => Some((RECORD_OVERHEAD_BYTES as u64, None)),
        length => {
            let slot = rest.get(1..)?.first_chunk()?;
            let bytes = u64::from(length) + RECORD_OVERHEAD_BYTES as u64;
            Some((bytes, Some(u32::from_le_bytes(*slot))))
        }
    }
}

/// Reads the records of a log from one place to another or to the end, telling `each` what a record
/// says and its offset.
pub(crate) fn scan(
    bytes: &[u8],
    from: Start,
    to: Option<Start>,
    mut each: impl FnMut(Record<'_>, u64),
) -> Scan {
    let mut offset = from.offset as usize;
    let mut users = from.slot;
    let mut fault = None;
    let to = to.map_or(bytes.len(), |to| to.offset as usize);
    while offset < to && bytes.get(offset).is_some_and(|length| *length != 0) {
        match check(&bytes[offset..], users) {
            Ok((record, record_bytes)) => {
                each(record, offset as u64);
                offset += record_bytes;
                users += u32::from(matches!(record, Record::New { .. }));
            }
            Err((at, expected, found)) => {
                fault = Some(RecordFault {
                    offset: (offset + at) as u64,
                    expected,
                    found,
                });
                break;
            }
        }
    }
    Scan {
        users,
        end: offset as u64,
        fault,
    }
}

/// A disk leaves a sector as it was or as it was to be, whatever happens.
const SECTOR_BYTES: u64 = 512;

/// Bytes that an append which was cut short has left behind `end`, where the good records end.
///
/// Errors: no append leaves that. A process that dies leaves one record without a part of its
/// bytes, and nothing behind it. A power cut may lose any sector, so that zeros follow up to a
/// sector's end, and others come behind it.
pub(crate) fn torn_bytes(bytes: &[u8], end: u64, power_cut: bool) -> Result<u64, RecordFault> {
    let tail = bytes.get(end as usize..).unwrap_or_default();
    let used = |bytes: &[u8]| {
        bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1)
    };
    let torn = used(tail);
    let record_bytes = match tail.first() {
        // Its first byte may be what is missing.
        None | Some(0) => RECORD_BYTES_MAX,
        Some(&TOMBSTONE) => RECORD_OVERHEAD_BYTES,
        Some(length) => RECORD_BYTES_MAX.min(usize::from(*length) + RECORD_OVERHEAD_BYTES),
    };
    let lost_sector = || {
        let first = SECTOR_BYTES - end % SECTOR_BYTES;
        let ends = [first, first + SECTOR_BYTES].map(|end| (end as usize).min(tail.len()));
        let one = used(&tail[..ends[0]]);
        let other = used(&tail[ends[0]..ends[1]]);
        let spans = record_bytes > ends[0];
        (one <= record_bytes && one < ends[0]) || (spans && ends[0] + other <= record_bytes)
    };
    if torn <= record_bytes || (power_cut && lost_sector()) {
        return Ok(torn as u64);
    }
    Err(RecordFault {
        offset: end,
        expected: "nothing behind the last record but one that was cut short".to_owned(),
        found: format!("bytes up to {}", end + torn as u64),
    })
}

/// What is wrong with a record: where in it, what was expected, what found.
type Wrong = (usize, String, String);

/// The record at the start of `bytes` and its length, if it is one; `next` is the slot that was
/// never given before it.
fn check(bytes: &[u8], next: u32) -> Result<(Record<'_>, usize), Wrong> {
    let id_bytes = match bytes[0] {
        TOMBSTONE => 0,
        length => usize::from(length),
    };
    if id_bytes > USER_BYTES_MAX {
        return Err((
            0,
            format!("an id of 1 to {USER_BYTES_MAX} bytes"),
            format!("a length of {id_bytes}"),
        ));
    }
    let record_bytes = id_bytes + RECORD_OVERHEAD_BYTES;
    let Some((record, _)) = bytes.split_at_checked(record_bytes) else {
        return Err((
            0,
            format!("{record_bytes} bytes of record"),
            format!("{} up to the end of the file", bytes.len()),
        ));
    };
    let (checked, crc) = record.split_at(record_bytes - 4);
    let (crc_expected, crc_found) = (
        crc32c::crc32c(checked),
        u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]]),
    );
    if crc_expected != crc_found {
        return Err((
            record_bytes - 4,
            format!("CRC32C {crc_expected:08x}"),
            format!("{crc_found:08x}"),
        ));
    }
    let slot = u32::from_le_bytes([checked[1], checked[2], checked[3], checked[4]]);
    let record = match (bytes[0], slot) {
        (TOMBSTONE, slot) if slot < next => Record::Gone { slot },
        (TOMBSTONE, _) => {
            let expected = format!("a slot below {next}, which has a user");
            return Err((1, expected, format!("slot {slot}")));
        }
        (_, slot) => {
            let id = legal_id(&checked[ID_AT as usize..])?;
            match slot {
                slot if slot == next => Record::New { slot, id },
                slot if slot < next => Record::Again { slot, id },
                _ => return Err((1, format!("slot {next}"), format!("slot {slot}"))),
            }
        }
    };
    Ok((record, record_bytes))
}

fn legal_id(id: &[u8]) -> Result<&[u8], Wrong> {
    match User::parse(id) {
        Ok(_) => Ok(id),
        Err(fault) => Err((
            ID_AT as usize,
            "a legal user id".to_owned(),
            fault.explain().to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many bytes after where the first record begins.
    const fn at(bytes: u64) -> u64 {
        FIRST_RECORD + bytes
    }

    fn log_of(ids: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0; FIRST_RECORD as usize];
        for (slot, id) in ids.iter().enumerate() {
            let mut record = [0; RECORD_BYTES_MAX];
            let length = encode(&mut record, slot as u32, id.as_bytes());
            bytes.extend_from_slice(&record[..length]);
        }
        bytes
    }

    fn scan_ids(bytes: &[u8]) -> (Vec<(u64, String)>, Scan) {
        let mut ids = Vec::new();
        let scan = scan(bytes, START, None, |record, offset| match record {
            Record::New { id, .. } | Record::Again { id, .. } => {
                ids.push((offset, String::from_utf8(id.to_vec()).unwrap()))
            }
            Record::Gone { slot } => ids.push((offset, format!("slot {slot} is free"))),
        });
        (ids, scan)
    }

    #[test]
    fn records_are_read_to_the_zero_byte() {
        let mut bytes = log_of(&["ann", "bob"]);
        bytes.extend_from_slice(&[0; 100]);
        let (ids, scan) = scan_ids(&bytes);
        assert_eq!(ids, [(at(0), "ann".to_owned()), (at(12), "bob".to_owned())]);
        assert_eq!(
            scan,
            Scan {
                users: 2,
                end: at(24),
                fault: None
            }
        );
    }

    #[test]
    fn every_cut_of_the_last_record_leaves_the_others() {
        let bytes = log_of(&["ann", "bob"]);
        for cut in at(13) as usize..bytes.len() {
            let (ids, scan) = scan_ids(&bytes[..cut]);
            assert_eq!(
                (ids.len(), scan.users, scan.end, scan.fault.is_some()),
                (1, 1, at(12), true),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_process_that_dies_leaves_one_record_at_most() {
        let whole = log_of(&["ann", "bob", "eve"]);
        let end = at(12);
        for cut in end as usize..whole.len() {
            let mut bytes = whole[..cut].to_vec();
            bytes.resize(whole.len() + 600, 0);
            let torn = torn_bytes(&bytes, end, false);
            let one = cut as u64 <= at(24);
            assert_eq!(
                torn.is_ok(),
                one,
                "bob is not whole, and {cut} bytes are there"
            );
            assert!(torn.is_err() || torn.is_ok_and(|torn| torn <= cut as u64 - end));
        }
        // The head of what was appended may be what is missing.
        let mut bytes = whole.clone();
        bytes[end as usize] = 0;
        assert_eq!(torn_bytes(&bytes, end, false), Ok(24));
        bytes.resize(at(0) as usize + 200, 7);
        let fault = torn_bytes(&bytes, end, false).unwrap_err();
        assert_eq!(fault.offset, end);
        assert_eq!(fault.found, format!("bytes up to {}", at(200)));
        assert_eq!(torn_bytes(&whole, whole.len() as u64, false), Ok(0));
        assert_eq!(torn_bytes(&whole, whole.len() as u64 + 9, false), Ok(0));
    }

    #[test]
    fn a_power_cut_may_lose_any_sector_and_flips_no_bit() {
        let ids: Vec<String> = (0..400).map(|n| format!("{n:07}")).collect();
        let whole = log_of(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        for sector in 0..whole.len() / 512 - 8 {
            let mut bytes = whole.clone();
            bytes[FIRST_RECORD as usize + sector * 512..][..512].fill(0);
            let scan = scan(&bytes, START, None, |_, _| {});
            let torn = torn_bytes(&bytes, scan.end, true);
            assert_eq!(torn, Ok(whole.len() as u64 - scan.end), "sector {sector}");
            assert!(torn_bytes(&bytes, scan.end, false).is_err());
        }
        // The last ones are as long as a flipped length can be.
        for record in 0..390 {
            for byte in 0..16 {
                let mut bytes = whole.clone();
                bytes[at(record * 16 + byte) as usize] ^= 0x41;
                assert!(torn_bytes(&bytes, at(record * 16), true).is_err());
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = log_of(&["ann", "bob"]);
        for place in 0..12 {
            let place = at(place) as usize;
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[place] ^= 1 << bit;
                let (_, scan) = scan_ids(&damaged);
                assert!(
                    scan.users == 0 && (scan.fault.is_some() || damaged[at(0) as usize] == 0),
                    "bit {bit} of byte {place}"
                );
            }
        }
    }

    #[test]
    fn parts_are_scanned_as_the_whole_is() {
        let ids: Vec<String> = (0..100).map(|n| "x".repeat(n % 7 + 1)).collect();
        let mut bytes = log_of(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        let log_bytes = bytes.len() as u64;
        bytes.extend_from_slice(&[0; 50]);
        let whole = scan(&bytes, START, None, |_, _| {});
        for parts in 1..=9 {
            let starts = split(&bytes, log_bytes, parts, 1);
            assert_eq!(starts.len(), parts);
            let mut slots = Vec::new();
            for (part, start) in starts.iter().enumerate() {
                let next = starts.get(part + 1).copied();
                let scan = scan(&bytes, *start, next, |record, _| match record {
                    Record::New { slot, .. } => slots.push(slot),
                    other => panic!("{other:?}"),
                });
                match next {
                    Some(next) => assert_eq!(
                        scan,
                        Scan {
                            users: next.slot,
                            end: next.offset,
                            fault: None
                        }
                    ),
                    None => assert_eq!(scan, whole),
                }
            }
            assert_eq!(slots, (0..100).collect::<Vec<_>>());
        }
        assert_eq!(
            split(&bytes, 10 * log_bytes, 2, 1),
            [START],
            "the hop ends with the log"
        );
    }

    #[test]
    fn a_slot_is_freed_and_given_again() {
        let mut bytes = log_of(&["ann", "bob"]);
        bytes.extend_from_slice(&encode_tombstone(0));
        let mut record = [0; RECORD_BYTES_MAX];
        let length = encode(&mut record, 0, b"eve");
        bytes.extend_from_slice(&record[..length]);
        let length = encode(&mut record, 2, b"ann");
        bytes.extend_from_slice(&record[..length]);
        let (records, scan) = scan_ids(&bytes);
        let says = [
            (at(0), "ann"),
            (at(12), "bob"),
            (at(24), "slot 0 is free"),
            (at(33), "eve"),
            (at(45), "ann"),
        ];
        assert_eq!(
            records,
            says.map(|(offset, says)| (offset, says.to_owned()))
        );
        assert_eq!((scan.users, scan.end, scan.fault), (3, at(57), None));
    }

    #[test]
    fn the_bytes_of_a_tombstone_are_as_documented() {
        let crc = crc32c::crc32c(&[255, 7, 0, 0, 0]).to_le_bytes();
        let record = encode_tombstone(7);
        assert_eq!(record[..5], [255, 7, 0, 0, 0]);
        assert_eq!(record[5..], crc);
    }

    #[test]
    fn a_tombstone_is_cut_or_damaged_as_a_user_is() {
        let mut bytes = log_of(&["ann", "bob"]);
        bytes.extend_from_slice(&encode_tombstone(1));
        for cut in at(25) as usize..bytes.len() {
            let (records, scan) = scan_ids(&bytes[..cut]);
            let torn = (records.len(), scan.end, scan.fault.is_some());
            assert_eq!(torn, (2, at(24), true), "cut at {cut}");
        }
        for place in at(24) as usize..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[place] ^= 1 << bit;
                let (records, scan) = scan_ids(&damaged);
                assert!(
                    records.len() == 2 && scan.fault.is_some(),
                    "bit {bit} of byte {place}"
                );
            }
        }
    }

    #[test]
    fn a_tombstone_of_a_slot_that_was_never_given_is_a_fault() {
        let mut bytes = log_of(&["ann"]);
        bytes.extend_from_slice(&encode_tombstone(1));
        assert_eq!(
            scan_ids(&bytes).1.fault,
            Some(RecordFault {
                offset: at(13),
                expected: "a slot below 1, which has a user".to_owned(),
                found: "slot 1".to_owned()
            })
        );
    }

    #[test]
    fn parts_begin_where_groups_do() {
        let ids: Vec<String> = (0..64).map(|n| format!("user {n:02}")).collect();
        let mut bytes = log_of(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        for slot in [3, 9, 50] {
            bytes.extend_from_slice(&encode_tombstone(slot));
        }
        let starts = split(&bytes, bytes.len() as u64, 5, 8);
        let slots: Vec<u32> = starts.iter().map(|start| start.slot).collect();
        assert_eq!(slots, [0, 16, 32, 40, 56]);
    }

    #[test]
    fn a_record_of_a_slot_too_far_is_a_fault() {
        let mut bytes = log_of(&["ann"]);
        let mut record = [0; RECORD_BYTES_MAX];
        let length = encode(&mut record, 2, b"bob");
        bytes.extend_from_slice(&record[..length]);
        assert_eq!(
            scan_ids(&bytes).1.fault,
            Some(RecordFault {
                offset: at(13),
                expected: "slot 1".to_owned(),
                found: "slot 2".to_owned()
            })
        );
    }
}
