//! HTTP/2 frames and certificate requests that no library would write.

/// The client's preface and an empty SETTINGS frame. Source: RFC 9113, section 3.4.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// POST, https and the path, in literal form. Source: RFC 7541, appendix A and section 6.2.
fn fields(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x87, 0x04, u8::try_from(path.len()).expect("short")];
    block.extend(path.as_bytes());
    block.extend([0x01, 1, b'x']);
    block
}

/// A whole request without a body.
pub fn request(stream: u32, path: &str) -> Vec<u8> {
    frame(1, END_STREAM | END_HEADERS, stream, &fields(path))
}

/// RST_STREAM with CANCEL.
pub fn reset(stream: u32) -> Vec<u8> {
    frame(3, 0, stream, &8u32.to_be_bytes())
}

/// A request whose headers go on in other frames.
pub fn open_headers(stream: u32, path: &str) -> Vec<u8> {
    frame(1, END_STREAM, stream, &fields(path))
}

/// 8 KiB of headers that go on still.
pub fn continuation(stream: u32) -> Vec<u8> {
    let mut block = Vec::new();
    while block.len() < 8000 {
        // A literal field without indexing: name of one byte, value of 100.
        block.extend([0x00, 1, b'a', 100]);
        block.extend([b'v'; 100]);
    }
    frame(9, 0, stream, &block)
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(length) if length < 128 => out.push(length),
        _ => {
            let length = u16::try_from(content.len()).expect("short").to_be_bytes();
            out.push(0x82);
            out.extend(length);
        }
    }
    out.extend(content);
    out
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

fn bits(content: &[u8]) -> Vec<u8> {
    tlv(3, &[&[0], content].concat())
}

/// A CSR for an RSA key of so many bits, with a signature that took no time to make.
pub fn rsa_csr(key_bits: usize) -> Vec<u8> {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    const SHA256_WITH_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
    let algorithm = |oid: &[u8]| sequence(&[tlv(6, oid), tlv(5, &[])]);
    let modulus = [&[0u8][..], &vec![0xc5; key_bits / 8]].concat();
    let key = sequence(&[tlv(2, &modulus), tlv(2, &[1, 0, 1])]);
    let spki = sequence(&[algorithm(RSA), bits(&key)]);
    let info = sequence(&[tlv(2, &[0]), sequence(&[]), spki, tlv(0xa0, &[])]);
    sequence(&[info, algorithm(SHA256_WITH_RSA), bits(&vec![0x5c; key_bits / 8])])
}
