//! What a node of a fleet is told when it starts, and what all nodes of one must agree on.

use crate::fleet::CALL_USERS_MAX;

/// How a node takes part.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What all nodes agree on.
    pub layout: Layout,
    /// What its lease says: where it answers and which version it is.
    pub info: Box<str>,
    /// Time between two renewals of its lease in one lane.
    pub renew_ms: u64,
    /// After that others know that a node has died, and pass no more beats on to it.
    pub missed_ms: u64,
    /// After an outage, or when another server has taken over, nothing is taken back for so long:
    /// those who know better speak first.
    pub settle_ms: u64,
    /// What was sent is void so long after it was sent.
    pub void_after_ms: u64,
    /// Each partition is audited once in this time.
    pub audit_ms: u64,
    /// Most commands that are under way to one server at a time; not 0. All that an idle
    /// node does in one second with 1,024 partitions at one server fits.
    pub in_flight_max: u32,
    /// Most users of one call and of one read, 1 to [`CALL_USERS_MAX`]. A test has few, so that a
    /// partition of few users takes several.
    pub call_users_max: usize,
    /// Users of dead nodes that the whole fleet takes offline in a second.
    pub reap_users_per_s: u32,
    /// Of whoever has been offline for longer nothing is kept. 0: everything is. One node that
    /// does this is enough.
    pub forget_after_ms: u64,
    /// Most names that are watched here and have no slot.
    pub names_max: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            layout: Layout::default(),
            info: "".into(),
            renew_ms: 1_000,
            missed_ms: 2_500,
            settle_ms: 6_000,
            void_after_ms: 2_000,
            audit_ms: 30_000,
            in_flight_max: 40,
            call_users_max: CALL_USERS_MAX,
            reap_users_per_s: 20_000,
            forget_after_ms: 0,
            names_max: 1_000_000,
        }
    }
}

/// What is fixed when a fleet is created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// A power of two from 64 to 16,384.
    pub partitions: u32,
    /// Hashes that the users of a partition who are offline are dealt out among: from 1 to 4,096.
    /// While one has at most 512 users Redis keeps it as one piece; beyond that each of them takes
    /// three times as much.
    pub buckets: u32,
    /// How long a sign of life counts; also, how long a node's lease does.
    pub offline_after_ms: u32,
    /// Of what Redis keeps.
    pub format: u32,
}

impl Default for Layout {
    fn default() -> Layout {
        Layout {
            partitions: 1_024,
            buckets: 16,
            offline_after_ms: 25_000,
            format: Layout::FORMAT,
        }
    }
}

impl Layout {
    /// The one that this version keeps.
    pub const FORMAT: u32 = 1;
    /// Names of the fields, in the order of [`Layout::values`].
    pub const FIELDS: [&str; 4] = ["partitions", "buckets", "offline_after_ms", Layout::KEPT];
    /// The one that says which format it is.
    const KEPT: &str = "format";

    /// In the order of [`Layout::FIELDS`].
    pub fn values(&self) -> [u32; 4] {
        [
            self.partitions,
            self.buckets,
            self.offline_after_ms,
            self.format,
        ]
    }
}

/// This node is configured otherwise than its fleet, and takes no part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disagreement {
    /// What they disagree on.
    pub setting: &'static str,
    /// What this node is told.
    pub here: String,
    /// What the fleet was created with.
    pub fleet: String,
}

impl std::fmt::Display for Disagreement {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Disagreement {
            setting,
            here,
            fleet,
        } = self;
        if *setting != Layout::KEPT {
            let flag = match *setting {
                "partitions" => "--cluster-partitions",
                "buckets" => "--cluster-buckets",
                "offline_after_ms" => "--offline-after-ms",
                other => other,
            };
            return write!(
                out,
                "{flag} is {here} here and {fleet} in the fleet; all nodes must have the same"
            );
        }
        let is_newer = fleet.parse::<u32>().is_ok_and(|kept| kept > Layout::FORMAT);
        let advice = match is_newer {
            true => "a newer greendot made it: upgrade this node",
            false => "docs/CLUSTER.md says what to do",
        };
        write!(
            out,
            "the fleet's database is of format {fleet}, and this greendot keeps format {here}; \
             {advice}"
        )
    }
}

impl std::error::Error for Disagreement {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disagreement_names_both_and_the_flag() {
        let said = |setting| {
            let (here, fleet) = ("16".to_owned(), "1024".to_owned());
            let disagreement = Disagreement {
                setting,
                here,
                fleet,
            };
            disagreement.to_string()
        };
        let flags = [
            "--cluster-partitions",
            "--cluster-buckets",
            "--offline-after-ms",
        ];
        for (setting, flag) in Layout::FIELDS.into_iter().zip(flags) {
            assert_eq!(
                said(setting),
                format!("{flag} is 16 here and 1024 in the fleet; all nodes must have the same")
            );
        }
    }
}
