//! What a page of a walk is asked by: `?user=..&cursor=..&limit=..`.
//!
//! Owns how the query is read. Never knows what is walked over.

use std::str::FromStr;

use super::arguments::{Fault, entry};
use super::ignored::Ignored;
use crate::wire::UserBuf;
use crate::wire::record::BodyFault;
use crate::wire::request::query_pairs;

/// Most entries of a page.
pub(super) const PAGE_MAX: usize = 1_000;

/// What a walk may be asked to look for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Filter {
    /// One user.
    User,
    /// The beginning of users' ids; nothing is the beginning of all.
    Prefix,
}

impl Filter {
    /// The parameter of the query.
    const fn name(self) -> &'static str {
        match self {
            Filter::User => "user",
            Filter::Prefix => "prefix",
        }
    }
}

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Page {
    /// Only what this matches.
    pub(super) filter: Option<UserBuf>,
    /// Most entries.
    pub(super) limit: usize,
    /// Where it goes on; None: at the beginning.
    pub(super) cursor: Option<String>,
    /// What else stands in the query.
    pub(super) ignored: Ignored,
}

impl Page {
    /// What a query asks for.
    pub(super) fn asked(query: &str, filter: Filter, limit_max: usize) -> Result<Page, Fault> {
        let mut found: [Option<Vec<u8>>; 3] = Default::default();
        let member = filter.name();
        let names = [member, "limit", "cursor"];
        let mut ignored = Ignored::default();
        for (name, value) in query_pairs(query) {
            let Some(at) = names.iter().position(|known| known.as_bytes() == &*name) else {
                ignored.add(&name);
                continue;
            };
            let value = value.ok_or_else(|| {
                let detail = format!("{}: an escape is a % and two hex digits", names[at]);
                Fault::Query(detail.into())
            })?;
            if found[at].replace(value.into_owned()).is_some() {
                let detail = format!("{} stands twice; it may stand once", names[at]);
                return Err(Fault::Query(detail.into()));
            }
        }
        let [looked_for, limit, cursor] = found;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let is_all = |given: &[u8]| filter == Filter::Prefix && given.is_empty();
        let looked_for = looked_for.filter(|given| !is_all(given));
        let filter = looked_for.map(|given| {
            let user = entry(Some(&given));
            user.map_err(|fault| BodyFault::User { member, fault })
        });
        let limit = limit.map(|limit| {
            let limit = text(limit);
            let number = usize::from_str(&limit).ok();
            let number = number.filter(|number| (1..=limit_max).contains(number));
            number.ok_or_else(|| {
                Fault::Query(format!("limit is a number from 1 to {limit_max}").into())
            })
        });
        Ok(Page {
            filter: filter.transpose()?,
            limit: limit.transpose()?.unwrap_or(limit_max),
            cursor: cursor.map(text),
            ignored,
        })
    }

    /// What is looked for, or nothing.
    pub(super) fn filter(&self) -> &str {
        self.filter.as_ref().map_or("", UserBuf::as_str)
    }
}
