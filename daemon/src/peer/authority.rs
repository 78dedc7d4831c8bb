//! Makes the `:authority` of gRPC's C core readable for `http`.
//!
//! Over a Unix socket those clients (Python, C++, Ruby, C#) send the socket's path as authority, percent-encoded, which
//! `http::uri::Authority` does not take: h2 would end each request with PROTOCOL_ERROR. Nothing here uses the value, so
//! its `%` become `-` on the way in. They send the name as a literal and no Huffman code, and only that is looked for.

const PREFACE_BYTES: usize = 24;
const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// A literal name of ten bytes. A header value cannot hold it: line feeds are not allowed there.
const NAME: &[u8] = b"\x0a:authority";

/// Where in the stream of bytes the reader is.
#[derive(Debug)]
enum At {
    /// Still to come: bytes of the connection preface.
    Preface(usize),
    /// In a frame's header: what was read of it.
    Header([u8; FRAME_HEADER_BYTES], usize),
    /// In a frame's payload: bytes still to come, and whether it holds header fields.
    Payload(usize, bool),
}

/// Where in a header block the reader is. A block may go over several frames.
#[derive(Debug)]
enum Field {
    /// So many bytes of [`NAME`] have been seen.
    Name(usize),
    /// The next byte is the value's length.
    Length,
    /// So many bytes of the value are still to come.
    Value(usize),
}

/// Follows the bytes that a client sends.
#[derive(Debug)]
pub(super) struct AuthorityMend {
    at: At,
    field: Field,
}

impl AuthorityMend {
    pub(super) fn new() -> Self {
        Self { at: At::Preface(PREFACE_BYTES), field: Field::Name(0) }
    }

    /// Looks at what was just read and mends it in place.
    pub(super) fn mend(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let taken = self.step(bytes);
            bytes = &mut bytes[taken..];
        }
    }

    /// Takes at least one byte.
    fn step(&mut self, bytes: &mut [u8]) -> usize {
        match &mut self.at {
            At::Preface(left) => {
                let taken = bytes.len().min(*left);
                *left -= taken;
                if *left == 0 {
                    self.at = At::Header([0; FRAME_HEADER_BYTES], 0);
                }
                taken
            }
            At::Header(header, filled) => {
                let taken = bytes.len().min(FRAME_HEADER_BYTES - *filled);
                header[*filled..*filled + taken].copy_from_slice(&bytes[..taken]);
                *filled += taken;
                if *filled == FRAME_HEADER_BYTES {
                    let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
                    let fields = matches!(header[3], HEADERS | CONTINUATION);
                    self.at = payload(length, fields);
                }
                taken
            }
            At::Payload(left, fields) => {
                let taken = bytes.len().min(*left);
                let (rest, fields) = (*left - taken, *fields);
                if fields {
                    bytes[..taken].iter_mut().for_each(|byte| self.field.see(byte));
                }
                self.at = payload(rest, fields);
                taken
            }
        }
    }
}

/// An empty payload is followed by the next header.
fn payload(left: usize, fields: bool) -> At {
    if left == 0 { At::Header([0; FRAME_HEADER_BYTES], 0) } else { At::Payload(left, fields) }
}

impl Field {
    fn see(&mut self, byte: &mut u8) {
        *self = match *self {
            Self::Name(seen) if *byte == NAME[seen] && seen + 1 == NAME.len() => Self::Length,
            Self::Name(seen) if *byte == NAME[seen] => Self::Name(seen + 1),
            Self::Name(_) => Self::Name(usize::from(*byte == NAME[0])),
            // Huffman code, or a length of several bytes: no socket's path is that long.
            Self::Length if *byte >= 0x7f => Self::Name(0),
            Self::Length => Self::value(usize::from(*byte)),
            Self::Value(left) => {
                if *byte == b'%' {
                    *byte = b'-';
                }
                Self::value(left - 1)
            }
        };
    }

    fn value(left: usize) -> Self {
        if left == 0 { Self::Name(0) } else { Self::Value(left) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn stream(authority: &str) -> Vec<u8> {
        let mut fields = b"\x40\x05:path\x04/a%b".to_vec();
        fields.extend_from_slice(b"\x40\x0a:authority");
        fields.push(u8::try_from(authority.len()).unwrap());
        fields.extend_from_slice(authority.as_bytes());
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00".to_vec();
        bytes.extend_from_slice(&[0, 0, u8::try_from(fields.len()).unwrap(), HEADERS, 4, 0, 0, 0, 1]);
        bytes.extend_from_slice(&fields);
        bytes.extend_from_slice(b"\x00\x00\x03\x00\x01\x00\x00\x00\x01a%b");
        bytes
    }

    #[test]
    fn only_the_authority_changes_however_the_bytes_arrive() {
        let (given, want) = (stream("tmp%2Fagent.sock"), stream("tmp-2Fagent.sock"));
        for size in 1..=given.len() {
            let mut got = given.clone();
            let mut mend = AuthorityMend::new();
            got.chunks_mut(size).for_each(|chunk| mend.mend(chunk));
            assert_eq!(got, want, "in pieces of {size}");
        }
    }

    #[test]
    fn other_streams_stay_as_they_are() {
        let plain = stream("localhost");
        for given in [plain, b"GET /a%b HTTP/1.1\r\n\r\n\x0a:authority\x03a%b".to_vec(), vec![0xff; 4096]] {
            let mut got = given.clone();
            AuthorityMend::new().mend(&mut got);
            assert_eq!(got, given);
        }
    }
}
