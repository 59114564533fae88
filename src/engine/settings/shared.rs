//! The settings that count now, for all shards of a node.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::Settings;

/// Where every shard finds them. Others may take their place while the node runs, as far as what
/// was made of the first ones can go on (`greendot reload`).
#[derive(Clone, Debug)]
pub struct SharedSettings(Arc<ArcSwap<Settings>>);

impl SharedSettings {
    /// Those that count now.
    pub fn load(&self) -> Arc<Settings> {
        self.0.load_full()
    }

    /// These count from the next turn of each shard on.
    pub fn store(&self, settings: Settings) {
        self.0.store(Arc::new(settings));
    }

    /// Others than `known`, if there are.
    pub(in crate::engine) fn newer(&self, known: &Arc<Settings>) -> Option<Arc<Settings>> {
        let latest = self.0.load();
        (!Arc::ptr_eq(&latest, known)).then(|| Arc::clone(&latest))
    }
}

impl From<Settings> for SharedSettings {
    fn from(settings: Settings) -> SharedSettings {
        SharedSettings::from(Arc::new(settings))
    }
}

impl From<Arc<Settings>> for SharedSettings {
    fn from(settings: Arc<Settings>) -> SharedSettings {
        SharedSettings(Arc::new(ArcSwap::new(settings)))
    }
}
