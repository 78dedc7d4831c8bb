//! The two slots of a kind of authority. While one signs, the other is made ready.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use super::rotation::Span;

/// X.509 or JWT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthorityKind {
    /// Signs X.509-SVIDs.
    X509,
    /// Signs JWT-SVIDs.
    Jwt,
}

/// A slot's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotId {
    /// The first.
    A,
    /// The second.
    B,
}

impl SlotId {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// `A` or `B`, as in the journal.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }

    /// The id of this slot's key in the key manager. SPIRE's names, so that its keys are found.
    pub fn key_id(self, kind: AuthorityKind) -> &'static str {
        match (kind, self) {
            (AuthorityKind::X509, Self::A) => "x509-CA-A",
            (AuthorityKind::X509, Self::B) => "x509-CA-B",
            (AuthorityKind::Jwt, Self::A) => "JWT-Signer-A",
            (AuthorityKind::Jwt, Self::B) => "JWT-Signer-B",
        }
    }
}

impl FromStr for SlotId {
    type Err = ();
    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|slot| slot.name() == name).ok_or(())
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where an authority is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// In the bundle, not signing yet.
    Prepared,
    /// Signing.
    Active,
    /// Replaced; still in the bundle.
    Old,
}

/// What is known about an authority, without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityInfo {
    /// Which slot holds it.
    pub slot: SlotId,
    /// Where it is in its life.
    pub status: Status,
    /// When it was prepared.
    pub issued_at: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
    /// Subject key ID in lower-case hex, or the key ID of a JWT authority.
    pub authority_id: String,
    /// Authority key ID of an X.509 authority in lower-case hex; empty when self-signed or JWT.
    pub upstream_authority_id: String,
}

impl AuthorityInfo {
    /// The times that rotation looks at.
    pub fn span(&self) -> Span {
        Span { issued_at: self.issued_at, not_after: self.not_after }
    }
}

/// An authority and the key it signs with. A replaced authority has no key any more.
pub struct Held<K> {
    /// The facts.
    pub info: AuthorityInfo,
    /// What signs. None once old.
    pub key: Option<Arc<K>>,
}

// Not derived: that would ask for `K: Clone`.
impl<K> Clone for Held<K> {
    fn clone(&self) -> Self {
        Self { info: self.info.clone(), key: self.key.clone() }
    }
}

/// Slots A and B. Invariants: at most one is active; a slot that is active has a key.
pub struct Slots<K> {
    held: [Option<Held<K>>; 2],
}

impl<K> Clone for Slots<K> {
    fn clone(&self) -> Self {
        Self { held: self.held.clone() }
    }
}

impl<K> Default for Slots<K> {
    fn default() -> Self {
        Self { held: [None, None] }
    }
}

impl<K> Slots<K> {
    fn with(&self, status: Status) -> Option<&Held<K>> {
        self.held.iter().flatten().find(|held| held.info.status == status)
    }

    /// The authority that signs.
    pub fn active(&self) -> Option<&Held<K>> {
        self.with(Status::Active)
    }

    /// What signs.
    pub fn active_key(&self) -> Option<&Arc<K>> {
        self.active().and_then(|held| held.key.as_ref())
    }

    /// The authority that stands ready.
    pub fn prepared(&self) -> Option<&Held<K>> {
        self.with(Status::Prepared)
    }

    /// The authority that was replaced last, until its slot is used again.
    pub fn old(&self) -> Option<&Held<K>> {
        self.with(Status::Old)
    }

    /// Everything that is held, A first.
    pub fn iter(&self) -> impl Iterator<Item = &Held<K>> {
        self.held.iter().flatten()
    }

    /// Where the next authority is prepared: never the active slot.
    pub fn free(&self) -> SlotId {
        match self.active().or_else(|| self.old()) {
            Some(held) => held.info.slot.other(),
            None => self.prepared().map_or(SlotId::A, |held| held.info.slot),
        }
    }

    /// Forgets a prepared authority, because its key is about to be replaced.
    pub fn discard_prepared(&mut self) {
        for held in &mut self.held {
            if held.as_ref().is_some_and(|held| held.info.status == Status::Prepared) {
                *held = None;
            }
        }
    }

    /// Puts a prepared authority into its slot.
    pub fn put(&mut self, held: Held<K>) {
        let slot = held.info.slot as usize;
        self.held[slot] = Some(held);
    }

    /// Puts an authority from the journal into its slot unless that is taken. Newer ones come first; should two be
    /// active, as after a status that could not be saved, then the newer one is.
    pub fn restore(&mut self, mut held: Held<K>) {
        let slot = held.info.slot as usize;
        if self.held[slot].is_some() {
            return;
        }
        if held.info.status == Status::Active && self.active().is_some() {
            held.info.status = Status::Old;
        }
        if held.info.status == Status::Prepared && self.prepared().is_some() {
            held.info.status = Status::Old;
        }
        if held.info.status == Status::Old {
            held.key = None;
        }
        self.held[slot] = Some(held);
    }

    /// The prepared authority becomes active, the active one old. False if none is prepared.
    pub fn activate(&mut self) -> bool {
        if self.prepared().is_none_or(|held| held.key.is_none()) {
            return false;
        }
        for held in self.held.iter_mut().flatten() {
            match held.info.status {
                Status::Prepared => held.info.status = Status::Active,
                Status::Active | Status::Old => {
                    held.info.status = Status::Old;
                    held.key = None;
                }
            }
        }
        true
    }
}

impl<K> fmt::Debug for Slots<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|held| &held.info)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(slot: SlotId, status: Status) -> Held<u8> {
        let info = AuthorityInfo {
            slot,
            status,
            issued_at: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            authority_id: slot.name().to_owned(),
            upstream_authority_id: String::new(),
        };
        Held { info, key: (status != Status::Old).then(|| Arc::new(0)) }
    }

    #[test]
    fn names() {
        assert_eq!(SlotId::A.key_id(AuthorityKind::X509), "x509-CA-A");
        assert_eq!(SlotId::B.key_id(AuthorityKind::Jwt), "JWT-Signer-B");
        assert_eq!("B".parse(), Ok(SlotId::B));
        assert!("".parse::<SlotId>().is_err());
    }

    #[test]
    fn a_rotation_alternates_between_the_slots() {
        let mut slots = Slots::default();
        assert!(!slots.activate(), "nothing to activate");
        for want in [SlotId::A, SlotId::B, SlotId::A, SlotId::B] {
            assert_eq!(slots.free(), want);
            slots.put(held(want, Status::Prepared));
            assert!(slots.activate());
            assert_eq!(slots.active().expect("active").info.slot, want);
            assert!(slots.prepared().is_none());
            assert!(slots.old().is_none_or(|old| old.info.slot == want.other() && old.key.is_none()));
        }
    }

    #[test]
    fn the_slot_to_prepare_is_never_the_active_one() {
        let mut slots = Slots::default();
        slots.put(held(SlotId::B, Status::Prepared));
        assert_eq!(slots.free(), SlotId::B);
        slots.activate();
        assert_eq!(slots.free(), SlotId::A);
        slots.put(held(SlotId::A, Status::Prepared));
        assert_eq!(slots.free(), SlotId::A, "preparing again replaces what was prepared");
        slots.discard_prepared();
        assert!(slots.prepared().is_none() && slots.active().is_some());
    }
}
