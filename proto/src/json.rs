//! Protobuf JSON exactly as SPIRE's command line prints it.
//!
//! Field names as in the `.proto` file, default values present, 64-bit integers as strings, bytes in
//! base64, enum values by name, nulls removed, object keys sorted. SPIRE passes the JSON through Go's
//! generic decoder and encoder, so numbers and escapes are Go's.

use std::fmt::Write as _;

use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::{Number, Value};

use crate::descriptor_pool;

/// Why a message could not be turned into JSON or back.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// No message of that name is in [`crate::FILE_DESCRIPTOR_SET`].
    #[error("unknown message {0}")]
    UnknownMessage(String),
    /// The bytes are not a message of that name.
    #[error("message does not match its descriptor")]
    Decode(#[from] prost::DecodeError),
    /// The text is not JSON, not this message, or holds a value that JSON cannot express.
    #[error("invalid protobuf JSON")]
    Json(#[from] serde_json::Error),
}

/// `msg`, which is the message `full_name` (such as `spire.api.types.Entry`), as JSON.
///
/// # Errors
/// [`JsonError`] if `full_name` is not known or not the name of `M`.
pub fn to_json<M: prost::Message>(full_name: &str, msg: &M) -> Result<Value, JsonError> {
    let dynamic = DynamicMessage::decode(descriptor(full_name)?, &msg.encode_to_vec()[..])?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(true);
    let mut value = dynamic.serialize_with_options(serde_json::value::Serializer, &options)?;
    remove_nulls(&mut value);
    integers_like_go(&mut value);
    value.sort_all_objects();
    Ok(value)
}

/// Reads the message `full_name` from JSON. Field names may be those of the `.proto` file or lower
/// camel case; 64-bit integers may be numbers or strings; unknown fields are ignored.
///
/// The caller limits the size of `text`.
///
/// # Errors
/// [`JsonError`] if `full_name` is not known or the text does not fit it.
pub fn from_json<M: prost::Message + Default>(full_name: &str, text: &str) -> Result<M, JsonError> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let dynamic = DynamicMessage::deserialize_with_options(descriptor(full_name)?, &mut reader, &options)?;
    reader.end()?;
    Ok(dynamic.transcode_to()?)
}

/// What SPIRE writes to standard output for `values`, line feed included: nothing for none, the object
/// for one, an array for several.
pub fn print(values: &[Value]) -> String {
    match values {
        [] => String::new(),
        [one] => escape_like_go(&one.to_string()) + "\n",
        many => escape_like_go(&Value::from(many.to_vec()).to_string()) + "\n",
    }
}

fn descriptor(full_name: &str) -> Result<MessageDescriptor, JsonError> {
    descriptor_pool()
        .get_message_by_name(full_name)
        .ok_or_else(|| JsonError::UnknownMessage(full_name.to_owned()))
}

fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => {
            items.retain(|item| !item.is_null());
            items.iter_mut().for_each(remove_nulls);
        }
        _ => {}
    }
}

/// Numbers of a `google.protobuf.Struct` are doubles. Go prints whole ones without `.0`, and below
/// 1e21 without an exponent, as Rust's `Display` does.
fn integers_like_go(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(integers_like_go),
        Value::Array(items) => items.iter_mut().for_each(integers_like_go),
        Value::Number(number) => {
            if let Some(whole) = whole_number(number) {
                *number = whole;
            }
        }
        _ => {}
    }
}

fn whole_number(number: &Number) -> Option<Number> {
    let float = number.as_f64().filter(|_| number.is_f64())?;
    let text = float.to_string();
    text.parse::<u64>().map(Number::from).or_else(|_| text.parse::<i64>().map(Number::from)).ok()
}

/// Go's encoder escapes what could end a script element; these characters occur only inside strings.
fn escape_like_go(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for char in json.chars() {
        match char {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(char));
            }
            _ => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests;
