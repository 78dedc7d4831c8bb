//! Responses, written straight into wiping bytes: prost's own types would leave copies of keys behind.

use prost::bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use svid_proto::Encoded;
use zeroize::Zeroizing;

use super::resources::{Resource, SECRET_TYPE_URL};

/// A state-of-the-world response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub version_info: String,
    pub nonce: String,
    pub type_url: String,
    pub resources: Vec<Resource>,
}

/// An incremental response.
#[derive(Debug)]
pub(crate) struct DeltaReply {
    pub system_version_info: String,
    pub nonce: String,
    pub type_url: String,
    pub resources: Vec<Resource>,
    pub removed: Vec<String>,
}

impl Reply {
    /// The wire bytes of a `DiscoveryResponse`.
    pub(crate) fn encode(&self) -> Encoded {
        let len = field_len(1, self.version_info.len())
            + self.resources.iter().map(|resource| message_len(2, any_len(resource))).sum::<usize>()
            + field_len(4, self.type_url.len())
            + field_len(5, self.nonce.len());
        let mut buf = Zeroizing::new(Vec::with_capacity(len));
        put_field(&mut *buf, 1, self.version_info.as_bytes());
        for resource in &self.resources {
            put_header(&mut *buf, 2, any_len(resource));
            put_any(&mut *buf, resource);
        }
        put_field(&mut *buf, 4, self.type_url.as_bytes());
        put_field(&mut *buf, 5, self.nonce.as_bytes());
        debug_assert_eq!(buf.len(), len, "a buffer that grows leaves an unwiped copy");
        Encoded::from_bytes(buf)
    }
}

impl DeltaReply {
    /// The wire bytes of a `DeltaDiscoveryResponse`.
    pub(crate) fn encode(&self) -> Encoded {
        let len = field_len(1, self.system_version_info.len())
            + self.resources.iter().map(|resource| message_len(2, delta_len(resource))).sum::<usize>()
            + field_len(4, self.type_url.len())
            + field_len(5, self.nonce.len())
            + self.removed.iter().map(|name| message_len(6, name.len())).sum::<usize>();
        let mut buf = Zeroizing::new(Vec::with_capacity(len));
        put_field(&mut *buf, 1, self.system_version_info.as_bytes());
        for resource in &self.resources {
            put_header(&mut *buf, 2, delta_len(resource));
            put_field(&mut *buf, 1, resource.version.as_bytes());
            put_header(&mut *buf, 2, any_len(resource));
            put_any(&mut *buf, resource);
            put_field(&mut *buf, 3, resource.name.as_bytes());
        }
        put_field(&mut *buf, 4, self.type_url.as_bytes());
        put_field(&mut *buf, 5, self.nonce.as_bytes());
        for name in &self.removed {
            put_header(&mut *buf, 6, name.len());
            buf.put_slice(name.as_bytes());
        }
        debug_assert_eq!(buf.len(), len, "a buffer that grows leaves an unwiped copy");
        Encoded::from_bytes(buf)
    }
}

fn any_len(resource: &Resource) -> usize {
    field_len(1, SECRET_TYPE_URL.len()) + field_len(2, resource.secret.as_bytes().len())
}

fn delta_len(resource: &Resource) -> usize {
    field_len(1, resource.version.len())
        + message_len(2, any_len(resource))
        + field_len(3, resource.name.len())
}

fn put_any(buf: &mut impl BufMut, resource: &Resource) {
    put_field(buf, 1, SECRET_TYPE_URL.as_bytes());
    put_field(buf, 2, resource.secret.as_bytes());
}

/// A string or bytes field; an empty one is left out.
fn field_len(tag: u32, len: usize) -> usize {
    if len == 0 { 0 } else { message_len(tag, len) }
}

fn message_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

fn put_field(buf: &mut impl BufMut, tag: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_header(buf, tag, bytes.len());
        buf.put_slice(bytes);
    }
}

fn put_header(buf: &mut impl BufMut, tag: u32, len: usize) {
    encode_key(tag, WireType::LengthDelimited, buf);
    encode_varint(len as u64, buf);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use prost::Message as _;
    use svid_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};

    use super::*;

    fn resource(name: &str, bytes: &[u8]) -> Resource {
        let secret = Encoded::from_bytes(Zeroizing::new(bytes.to_vec()));
        Resource { name: name.into(), version: format!("v-{name}"), secret }
    }

    #[test]
    fn a_reply_is_a_discovery_response() {
        let reply = Reply {
            version_info: "7".into(),
            nonce: "00ff00ff".into(),
            type_url: SECRET_TYPE_URL.into(),
            resources: vec![resource("a", &[1; 300]), resource("b", &[])],
        };
        let got = DiscoveryResponse::decode(reply.encode().as_bytes()).unwrap();
        assert_eq!(
            (got.version_info, got.nonce, got.type_url),
            ("7".into(), "00ff00ff".into(), reply.type_url)
        );
        assert_eq!(got.resources[0].value, [1; 300]);
        assert_eq!(got.resources[1].type_url, SECRET_TYPE_URL);
    }

    #[test]
    fn a_delta_reply_is_a_delta_response() {
        let reply = DeltaReply {
            system_version_info: "3".into(),
            nonce: "n".into(),
            type_url: SECRET_TYPE_URL.into(),
            resources: vec![resource("a", b"secret")],
            removed: vec!["gone".into(), String::new()],
        };
        let got = DeltaDiscoveryResponse::decode(reply.encode().as_bytes()).unwrap();
        assert_eq!(got.system_version_info, "3");
        assert_eq!((got.resources[0].name.as_str(), got.resources[0].version.as_str()), ("a", "v-a"));
        assert_eq!(got.resources[0].resource.as_ref().unwrap().value, b"secret");
        assert_eq!(got.removed_resources, ["gone", ""]);
    }
}
