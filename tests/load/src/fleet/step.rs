//! A step of our stream of changes, put together from its messages.

use svid_proto::spire::api::types;
use svid_proto::svid::sync::v1::{Position, WatchResponse};

use super::calls::Held;

/// One step.
#[derive(Default)]
pub struct Step {
    /// Where the agent stands after it.
    pub position: Option<Position>,
    /// The list of revisions is the whole one.
    pub snapshot: bool,
    message: WatchResponse,
    begun: bool,
}

impl Step {
    /// True once it has a message.
    pub fn is_begun(&self) -> bool {
        self.begun
    }

    /// Adds a message; true once the step is whole.
    pub fn add(&mut self, message: WatchResponse) -> bool {
        self.begun = true;
        self.snapshot |= message.snapshot;
        self.position = message.position;
        let whole = &mut self.message;
        whole.upserts.extend(message.upserts);
        whole.removed_ids.extend(message.removed_ids);
        whole.revisions.extend(message.revisions);
        whole.bundles_changed.extend(message.bundles_changed);
        !message.more
    }

    /// Whether a snapshot lists anything but what is held.
    pub fn differs(&self, held: &Held) -> bool {
        held.differs(self.message.revisions.iter().map(|row| (row.id.as_str(), row.revision_number)))
    }

    /// Takes the changes over, and tells entries that are new.
    pub fn apply(&self, held: &mut Held, told: impl Fn(&types::Entry)) {
        for entry in &self.message.upserts {
            if held.put(&entry.id, entry.revision_number) {
                told(entry);
            }
        }
        self.message.removed_ids.iter().for_each(|id| held.remove(id));
    }

    /// True if there are bundles to fetch.
    pub fn changes_bundles(&self) -> bool {
        !self.message.bundles_changed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_several_messages() {
        let entry = types::Entry { id: "a".into(), revision_number: 1, ..Default::default() };
        let first = WatchResponse { upserts: vec![entry], more: true, ..Default::default() };
        let last = WatchResponse {
            position: Some(Position { epoch: vec![1; 16], seq: 7 }),
            removed_ids: vec!["b".into()],
            ..Default::default()
        };
        let mut step = Step::default();
        assert!(!step.is_begun() && !step.add(first) && step.is_begun() && step.add(last));
        let mut held = Held::default();
        held.put("b", 0);
        step.apply(&mut held, |entry| assert_eq!(entry.id, "a"));
        assert!(!held.differs([("a", 1)].into_iter()));
        assert_eq!(step.position.expect("a position").seq, 7);
    }
}
