//! What a running command has at hand, and the small pieces of text that many commands share.

use std::io::{Read, Write};
use std::path::PathBuf;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use svid_core::clock::Clock;
use svid_core::id::{IdError, SpiffeId};
use svid_daemon::cli::CliError;
use svid_daemon::flags::Parsed;
use svid_proto::json;
use svid_proto::spire::api::types;
use tonic::Code;
use tonic::transport::Channel;

use super::{Outcome, client};

/// Largest file or input that a command reads, in bytes.
const MAX_INPUT_BYTES: u64 = 64 * 1024 * 1024;

/// One run of one command.
pub struct Session<'a> {
    /// The server's admin socket.
    pub socket: PathBuf,
    /// Standard input.
    pub stdin: &'a mut dyn Read,
    /// Standard output.
    pub out: &'a mut dyn Write,
    /// Standard error.
    pub err: &'a mut dyn Write,
    /// The time.
    pub clock: Clock,
}

impl Session<'_> {
    /// Connects to the server. Commands check their flags first, so that a mistake there is told without one.
    ///
    /// # Errors
    /// Text for people that says what to do.
    pub async fn server(&self) -> Result<Channel, CliError> {
        client::connect(&self.socket).await
    }

    /// Prints `message`, which is the protobuf message `name`: as JSON if the flags ask for that, else by `pretty`.
    /// What `pretty` finds wrong with the message is an error only there: with JSON the reader looks himself.
    ///
    /// # Errors
    /// What writing and `pretty` say.
    pub fn print<M: prost::Message>(
        &mut self,
        flags: &Parsed,
        name: &str,
        message: &M,
        pretty: impl FnOnce(&mut Self) -> Outcome,
    ) -> Outcome {
        if !is_json(flags) {
            return pretty(self);
        }
        let value = json::to_json(name, message).map_err(CliError::new)?;
        Ok(self.out.write_all(json::print(&[value]).as_bytes())?)
    }

    /// Bytes of the file at `path`, or of standard input for `-`.
    ///
    /// # Errors
    /// What reading says, naming the file, and refusal of more than 64 MiB.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>, CliError> {
        let mut bytes = Vec::new();
        if path == "-" {
            (&mut *self.stdin).take(MAX_INPUT_BYTES + 1).read_to_end(&mut bytes)?;
        } else {
            let file = std::fs::File::open(path).map_err(|error| open_error(path, &error))?;
            file.take(MAX_INPUT_BYTES + 1).read_to_end(&mut bytes)?;
        }
        if bytes.len() as u64 > MAX_INPUT_BYTES {
            return Err(CliError::new(format!("{path} is larger than {MAX_INPUT_BYTES} bytes")));
        }
        Ok(bytes)
    }

    /// As [`Session::read`], for text.
    ///
    /// # Errors
    /// As [`Session::read`], and for what is not UTF-8.
    pub fn read_text(&mut self, path: &str) -> Result<String, CliError> {
        String::from_utf8(self.read(path)?).map_err(|_| CliError::new(format!("{path} is not valid UTF-8")))
    }
}

/// Whether `-output json` was given.
pub fn is_json(flags: &Parsed) -> bool {
    flags.str("output") == "json"
}

fn open_error(path: &str, error: &std::io::Error) -> CliError {
    CliError::new(format!("open {path}: {}", client::system_words(error)))
}

/// An RPC's status as SPIRE's users know it.
pub fn rpc(status: &tonic::Status) -> String {
    format!("rpc error: code = {} desc = {}", code_name(status.code() as i32), status.message())
}

/// [`rpc`] as the error of a command.
pub fn rpc_error(status: tonic::Status) -> CliError {
    CliError::new(rpc(&status))
}

/// `what` in front of [`rpc`].
pub fn rpc_context(what: &'static str) -> impl FnOnce(tonic::Status) -> CliError {
    move |status| CliError::new(format!("{what}: {}", rpc(&status)))
}

/// Names of gRPC codes as Go prints them.
pub fn code_name(code: i32) -> String {
    match Code::from_i32(code) {
        Code::Ok => "OK".into(),
        Code::Cancelled => "Canceled".into(),
        Code::Unknown if code != Code::Unknown as i32 => format!("Code({code})"),
        known => format!("{known:?}"),
    }
}

/// Code and text of one item's result; an absent status is success, as in protobuf.
pub fn item_status(status: Option<&types::Status>) -> (i32, &str) {
    status.map_or((0, ""), |status| (status.code, status.message.as_str()))
}

/// Reads a SPIFFE ID of a flag.
///
/// # Errors
/// Why it is none.
pub fn parse_id(text: &str) -> Result<types::Spiffeid, IdError> {
    let id: SpiffeId = text.parse()?;
    Ok(types::Spiffeid { trust_domain: id.trust_domain_name().into(), path: id.path().into() })
}

/// A SPIFFE ID as text; empty when absent.
pub fn id_text(id: Option<&types::Spiffeid>) -> String {
    id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path)).unwrap_or_default()
}

/// Reads `type:value`; the value may hold colons.
///
/// # Errors
/// Text without a colon.
pub fn parse_selector(text: &str) -> Result<types::Selector, CliError> {
    match text.split_once(':') {
        Some((kind, value)) => Ok(types::Selector { r#type: kind.into(), value: value.into() }),
        None => Err(CliError::new(format!("selector \"{text}\" must be formatted as type:value"))),
    }
}

/// Number of a `-match...On` word; the two match enums of the API share their numbers.
pub fn parse_match(word: &str) -> Option<i32> {
    use types::selector_match::MatchBehavior;
    Some(match word {
        "exact" => MatchBehavior::MatchExact as i32,
        "any" => MatchBehavior::MatchAny as i32,
        "superset" => MatchBehavior::MatchSuperset as i32,
        "subset" => MatchBehavior::MatchSubset as i32,
        _ => return None,
    })
}

/// `1 entry`, `2 entries`.
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A point in time as Go prints it in UTC.
pub fn utc(seconds: i64) -> String {
    written(seconds, TimeZone::UTC, "%Y-%m-%d %H:%M:%S +0000 UTC")
}

/// A point in time as Go prints it in the local time zone.
pub fn local(seconds: i64) -> String {
    written(seconds, TimeZone::system(), "%Y-%m-%d %H:%M:%S %z %Z")
}

/// A point in time as RFC 3339 in UTC.
pub fn rfc3339(seconds: i64) -> String {
    written(seconds, TimeZone::UTC, "%Y-%m-%dT%H:%M:%SZ")
}

fn written(seconds: i64, zone: TimeZone, format: &str) -> String {
    match Timestamp::from_second(seconds) {
        Ok(at) => Zoned::new(at, zone).strftime(format).to_string(),
        Err(_) => seconds.to_string(),
    }
}
