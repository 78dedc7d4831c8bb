//! The plugin's section.

use std::path::PathBuf;

use aws_sdk_acmpca::types::SigningAlgorithm;
use svid_core::hcl::Reader;

use crate::session::partition;

/// The plugin's configuration, checked. Field names are SPIRE's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcaConfig {
    /// `region`.
    pub region: String,
    /// `endpoint`, of the PCA service only.
    pub endpoint: Option<String>,
    /// `certificate_authority_arn`.
    pub certificate_authority_arn: String,
    /// `signing_algorithm`; the CA's own without it.
    pub signing_algorithm: Option<String>,
    /// `ca_signing_template_arn`.
    pub ca_signing_template_arn: String,
    /// `assume_role_arn`.
    pub assume_role_arn: Option<String>,
    /// `supplemental_bundle_path`.
    pub supplemental_bundle_path: Option<PathBuf>,
}

impl PcaConfig {
    /// Reads the plugin's section. `None` only together with a recorded mistake.
    pub fn read(r: &mut Reader) -> Option<Self> {
        let given = |r: &mut Reader, key: &str| r.string(key).filter(|text| !text.is_empty());
        let region = given(r, "region");
        if region.is_none() {
            r.error("region", "plugin configuration is missing the region");
        }
        let arn = given(r, "certificate_authority_arn");
        match &arn {
            None => r.error(
                "certificate_authority_arn",
                "plugin configuration is missing the certificate_authority_arn",
            ),
            Some(arn) => check_arn(r, arn, region.as_deref()),
        }
        let endpoint = given(r, "endpoint");
        let signing_algorithm = given(r, "signing_algorithm");
        if let Some(name) = &signing_algorithm
            && !SigningAlgorithm::values().contains(&name.as_str())
        {
            let known = SigningAlgorithm::values().join(", ");
            r.warn("signing_algorithm", format!("{name:?} is not known here; known are {known}"));
        }
        let template = given(r, "ca_signing_template_arn");
        if let Some(template) = &template {
            check_template(r, template);
        }
        let assume_role_arn = given(r, "assume_role_arn");
        let supplemental_bundle_path = given(r, "supplemental_bundle_path").map(PathBuf::from);
        let arn = arn?;
        Some(Self {
            region: region?,
            endpoint,
            signing_algorithm,
            ca_signing_template_arn: template.unwrap_or_else(|| default_template(&arn)),
            certificate_authority_arn: arn,
            assume_role_arn,
            supplemental_bundle_path,
        })
    }
}

/// A CA that signs leaves and no CAs, in the CA's own partition.
fn default_template(ca_arn: &str) -> String {
    format!("arn:{}:acm-pca:::template/SubordinateCACertificate_PathLen0/V1", partition(ca_arn))
}

fn check_arn(r: &mut Reader, arn: &str, region: Option<&str>) {
    const KEY: &str = "certificate_authority_arn";
    let parts: Vec<&str> = arn.split(':').collect();
    let ["arn", _, "acm-pca", of_region, _, resource] = parts.as_slice() else {
        r.error(KEY, format!("found {arn:?}, expected arn:<partition>:acm-pca:<region>:<account>:certificate-authority/<id>"));
        return;
    };
    if !resource.starts_with("certificate-authority/") {
        r.error(KEY, format!("found {arn:?}, whose resource is no certificate-authority/<id>"));
    }
    if region.is_some_and(|region| region != *of_region) {
        let region = region.unwrap_or_default();
        r.warn(KEY, format!("the CA is in {of_region:?}, and the region that is asked is {region:?}"));
    }
}

fn check_template(r: &mut Reader, template: &str) {
    const KEY: &str = "ca_signing_template_arn";
    if !template.starts_with("arn:") || !template.contains(":acm-pca:::template/") {
        r.error(KEY, format!("found {template:?}, expected arn:<partition>:acm-pca:::template/<name>"));
    } else if !template.contains("SubordinateCACertificate_PathLen") {
        r.warn(KEY, format!("{template:?} makes no subordinate CAs: what it signs will be refused"));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use svid_core::hcl::{Report, Unknown, decode, parse};

    use super::*;

    const ARN: &str = "arn:aws-cn:acm-pca:cn-north-1:123456789012:certificate-authority/0123";

    fn read(text: &str) -> (Option<PcaConfig>, Report) {
        decode(&parse(text).unwrap(), |r| {
            let config = PcaConfig::read(r);
            r.finish(Unknown::Refuse);
            config
        })
    }

    #[test]
    fn the_template_is_of_the_cas_partition() {
        let (config, report) =
            read(&format!("region = \"cn-north-1\"\ncertificate_authority_arn = \"{ARN}\""));
        assert_eq!(report, Report::default());
        let template = "arn:aws-cn:acm-pca:::template/SubordinateCACertificate_PathLen0/V1";
        assert_eq!(config.unwrap().ca_signing_template_arn, template);
    }

    #[test]
    fn mistakes_name_the_key_and_what_is_expected() {
        let (_, report) = read(
            "certificate_authority_arn = \"arn:aws:iam::1:role/x\"\nca_signing_template_arn = \"x\"\ny = 1",
        );
        let all: Vec<String> = report.errors.iter().map(ToString::to_string).collect();
        let all = all.join("\n");
        for words in [
            "region: plugin configuration is missing the region",
            "certificate_authority_arn: found \"arn:aws:iam::1:role/x\", expected arn:<partition>:acm-pca:",
            "ca_signing_template_arn: found \"x\", expected arn:",
            "y: unknown configuration key",
        ] {
            assert!(all.contains(words), "{words} in {all}");
        }
        let (_, report) = read("region = \"r\"");
        assert!(report.errors[0].message.contains("missing the certificate_authority_arn"));
        let (_, report) = read(&format!(
            "region = \"eu-west-1\"\ncertificate_authority_arn = \"{ARN}\"\nsigning_algorithm = \"SHA1\"\n\
             ca_signing_template_arn = \"arn:aws:acm-pca:::template/EndEntityCertificate/V1\""
        ));
        assert!(report.errors.is_empty());
        assert_eq!(report.warnings.len(), 3, "{:?}", report.warnings);
    }
}
