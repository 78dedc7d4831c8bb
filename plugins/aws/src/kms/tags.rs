//! The tags of keys, SPIRE's and the operator's own.

use std::collections::BTreeMap;

use aws_sdk_kms::types::Tag;
use aws_sdk_resourcegroupstagging::types::TagFilter;
use svid_plugin_api::PluginError;

use super::names::Names;

const TRUST_DOMAIN: &str = "spire-server-td";
pub(super) const SERVER_ID: &str = "spire-server-id";
pub(super) const LAST_UPDATE: &str = "spire-last-update";
pub(super) const ACTIVE: &str = "spire-active";
pub(super) const KEY_ID: &str = "spire-key-id";

const MAX_TAGS: usize = 50;
const MAX_KEY_CHARS: usize = 128;
const MAX_VALUE_CHARS: usize = 256;

pub(super) fn tag(key: &str, value: &str) -> Result<Tag, PluginError> {
    let built = Tag::builder().tag_key(key).tag_value(value).build();
    built.map_err(|error| PluginError::internal(format!("unable to make the tag {key}: {error}")))
}

/// What a key that this server manages by tags carries.
pub(super) fn of_key(names: &Names, key_id: &str, now: i64) -> Result<Vec<Tag>, PluginError> {
    Ok(vec![
        tag(TRUST_DOMAIN, names.trust_domain())?,
        tag(SERVER_ID, names.server_id())?,
        tag(ACTIVE, "true")?,
        tag(KEY_ID, key_id)?,
        tag(LAST_UPDATE, &now.to_string())?,
    ])
}

/// Finds the active keys of the trust domain, of one server where it is given.
pub(super) fn filters(names: &Names, server_id: Option<&str>) -> Vec<TagFilter> {
    let filter = |key: &str, value: &str| TagFilter::builder().key(key).values(value).build();
    let mut filters = vec![filter(TRUST_DOMAIN, names.trust_domain()), filter(ACTIVE, "true")];
    filters.extend(server_id.map(|id| filter(SERVER_ID, id)));
    filters
}

/// Checks the operator's tags with the rules of AWS.
/// # Errors
/// SPIRE's sentence for the first rule that is broken.
pub(super) fn check(tags: &BTreeMap<String, String>) -> Result<(), String> {
    if tags.len() > MAX_TAGS {
        return Err(format!("too many tags: {} tags exceed AWS limit of 50", tags.len()));
    }
    for (key, value) in tags {
        let lower = key.to_lowercase();
        let reserved = ["aws:", "spire-"].into_iter().find(|prefix| lower.starts_with(prefix));
        if key.is_empty() {
            return Err("tag key cannot be empty".to_owned());
        }
        if key.len() > MAX_KEY_CHARS {
            return Err(format!("tag key {key:?} exceeds maximum length of 128 characters"));
        }
        if let Some(prefix) = reserved {
            return Err(format!("tag key {key:?} uses reserved prefix '{prefix}'"));
        }
        const ALLOWED: &str = "(allowed: letters, numbers, spaces, + - = . _ : / @)";
        if !key.chars().all(is_allowed) {
            return Err(format!("tag key {key:?} contains invalid characters {ALLOWED}"));
        }
        if value.len() > MAX_VALUE_CHARS {
            return Err(format!("tag value for key {key:?} exceeds maximum length of 256 characters"));
        }
        if !value.chars().all(is_allowed) {
            return Err(format!("tag value for key {key:?} contains invalid characters {ALLOWED}"));
        }
    }
    Ok(())
}

fn is_allowed(c: char) -> bool {
    c.is_alphanumeric() || c.is_ascii_whitespace() || "+-=._:/@".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_aws() {
        let check_one = |key: &str, value: &str, want: Option<&str>| {
            let result = check(&BTreeMap::from([(key.to_owned(), value.to_owned())]));
            match want {
                None => assert_eq!(result, Ok(())),
                Some(words) => assert!(result.as_ref().is_err_and(|text| text.contains(words)), "{result:?}"),
            }
        };
        check_one("Team", "Trust & more", Some("tag value for key \"Team\" contains invalid"));
        check_one("Team", "trust / ops = 1", None);
        check_one("", "x", Some("cannot be empty"));
        check_one("aws:x", "x", Some("reserved prefix 'aws:'"));
        check_one("Spire-x", "x", Some("reserved prefix 'spire-'"));
        check_one("a?", "x", Some("tag key \"a?\" contains invalid"));
        check_one(&"k".repeat(129), "x", Some("128"));
        check_one("k", &"v".repeat(257), Some("256"));
        let many = (0..51).map(|n| (format!("k{n}"), String::new())).collect();
        assert_eq!(check(&many), Err("too many tags: 51 tags exceed AWS limit of 50".to_owned()));
    }
}
