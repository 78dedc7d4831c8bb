//! The configurations that the documentation begins with are read without a mistake.

use svid_core::hcl::{Reader, Unknown, decode, parse};
use svid_vault::{KeyManagerConfig, UpstreamConfig};

const PAGE: &str = include_str!("../../../docs/vault.md");

fn env(name: &str) -> Option<String> {
    (name == "VAULT_APPROLE_SECRET_ID").then(|| "a secret".to_owned())
}

/// The example at this place, read by its plugin.
fn read<T>(at: usize, kind: &str, name: &str, read: impl Fn(&mut Reader) -> Option<T>) {
    let (example, _) =
        PAGE.split("```hcl\n").nth(at + 1).expect("an example").split_once("```").expect("its end");
    let (found, report) = decode(&parse(example).expect("HCL"), |r| {
        let found = r.blocks_labelled(kind, |label, plugin| {
            assert_eq!(label, name);
            plugin.block("plugin_data", |data| {
                let config = read(data);
                data.finish(Unknown::Refuse);
                config.is_some()
            })
        });
        r.finish(Unknown::Refuse);
        found
    });
    assert_eq!((report.errors, report.warnings), (Vec::new(), Vec::new()));
    assert_eq!(found, [Some(true)]);
}

#[test]
fn the_upstream_authority() {
    read(0, "UpstreamAuthority", "vault", |data| UpstreamConfig::read(data, &env));
}

#[test]
fn the_key_manager() {
    read(1, "KeyManager", "hashicorp_vault", |data| KeyManagerConfig::read(data, &env));
}
