//! A message that is encoded once, shared by many streams, and wiped when the last one lets go.

use std::fmt;
use std::sync::Arc;

use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType};
use prost::{DecodeError, Message};
use zeroize::Zeroizing;

/// The wire bytes of a message that may hold private keys. Cloning shares the bytes.
///
/// It takes the place of the response type in the `encoded_server` modules. The copies that gRPC
/// makes while it writes a frame are not wiped.
#[derive(Clone)]
pub struct Encoded(Arc<Zeroizing<Vec<u8>>>);

impl Encoded {
    /// Encodes `message`. The buffer is sized beforehand, so no unwiped copy is left by growing.
    pub fn of<M: Message>(message: &M) -> Self {
        Self::from_bytes(Zeroizing::new(message.encode_to_vec()))
    }

    /// Takes bytes that are the encoding of the message the RPC promises.
    pub fn from_bytes(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(Arc::new(bytes))
    }

    /// The wire bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoded").field("len", &self.0.len()).finish_non_exhaustive()
    }
}

/// Only encoding makes sense; a server never decodes its own responses.
impl Message for Encoded {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        _tag: u32,
        _wire_type: WireType,
        _buf: &mut impl Buf,
        _ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        // prost has no other constructor for an error of a hand-written message.
        #[allow(deprecated)]
        Err(DecodeError::new("an Encoded message is write-only"))
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0 = Arc::default();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::workload::{X509svid, X509svidResponse};

    fn response() -> X509svidResponse {
        X509svidResponse {
            svids: vec![X509svid {
                spiffe_id: "spiffe://example.org/web".into(),
                x509_svid_key: b"a private key".to_vec(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn encodes_as_the_message_it_was_made_of() {
        let encoded = Encoded::of(&response());
        assert_eq!(encoded.encode_to_vec(), response().encode_to_vec());
        assert_eq!(encoded.encoded_len(), response().encoded_len());
        assert_eq!(X509svidResponse::decode(encoded.as_bytes()).unwrap(), response());
    }

    #[test]
    fn clones_share_bytes() {
        let encoded = Encoded::of(&response());
        let clone = encoded.clone();
        assert!(std::ptr::eq(encoded.as_bytes(), clone.as_bytes()));
    }

    #[test]
    fn clear_leaves_other_clones_alone() {
        let encoded = Encoded::of(&response());
        let mut clone = encoded.clone();
        clone.clear();
        assert_eq!(clone.encoded_len(), 0);
        assert_eq!(encoded.encoded_len(), response().encoded_len());
    }

    #[test]
    fn is_write_only_and_silent() {
        let mut encoded = Encoded::of(&response());
        assert!(encoded.merge(&response().encode_to_vec()[..]).is_err());
        assert!(!format!("{encoded:?}").contains("private"));
    }
}
