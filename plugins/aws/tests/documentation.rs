//! The configuration that the documentation begins with is read without a mistake, and its policies are JSON.

use svid_aws::{KmsConfig, PcaConfig};
use svid_core::hcl::{Reader, Unknown, decode, parse};

const PAGE: &str = include_str!("../../../docs/aws.md");

fn examples(language: &str) -> Vec<&'static str> {
    let begins = PAGE.split(&format!("```{language}\n")).skip(1).collect::<Vec<_>>();
    begins.into_iter().map(|text| text.split_once("```").expect("its end").0).collect()
}

/// The plugins of one type in the example, as many as were read.
fn plugins(r: &mut Reader, kind: &str, name: &str, read: impl Fn(&mut Reader) -> bool) -> usize {
    let found = r.blocks_labelled(kind, |label, plugin| {
        assert_eq!(label, name);
        plugin.block("plugin_data", |data| {
            let is_whole = read(data);
            data.finish(Unknown::Refuse);
            is_whole
        })
    });
    found.into_iter().filter(|whole| *whole == Some(true)).count()
}

#[test]
fn the_configuration() {
    let (found, report) = decode(&parse(examples("hcl")[0]).expect("HCL"), |r| {
        let pca = plugins(r, "UpstreamAuthority", "aws_pca", |data| PcaConfig::read(data).is_some());
        let kms = plugins(r, "KeyManager", "aws_kms", |data| KmsConfig::read(data).is_some());
        r.finish(Unknown::Refuse);
        (pca, kms)
    });
    assert_eq!((report.errors, report.warnings), (Vec::new(), Vec::new()));
    assert_eq!(found, (1, 1));
}

#[test]
fn the_policies() {
    let policies = examples("json");
    assert_eq!(policies.len(), 2);
    for policy in policies {
        let policy: serde_json::Value = serde_json::from_str(policy).expect("JSON");
        assert_eq!(policy["Version"], "2012-10-17");
    }
}
