//! What keys are called in KMS. SPIRE's names, so that its keys are found and its IAM policies fit.

/// The names of one server's keys.
#[derive(Clone, Debug)]
pub(super) struct Names {
    trust_domain: String,
    server_id: String,
}

impl Names {
    pub(super) fn new(trust_domain: &str, server_id: &str) -> Self {
        Self { trust_domain: trust_domain.to_owned(), server_id: server_id.to_owned() }
    }

    pub(super) fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    pub(super) fn server_id(&self) -> &str {
        &self.server_id
    }

    /// What the aliases of the trust domain begin with.
    pub(super) fn domain_aliases(&self) -> String {
        format!("alias/SPIRE_SERVER/{}/", dotless(&self.trust_domain))
    }

    /// What the aliases of this server begin with.
    pub(super) fn server_aliases(&self) -> String {
        format!("{}{}/", self.domain_aliases(), clean(&self.server_id))
    }

    pub(super) fn alias(&self, key_id: &str) -> String {
        let encoded = key_id.replace('.', "_2e").replace('+', "_2b");
        format!("{}{}", self.server_aliases(), clean(&encoded))
    }

    /// The key id that an alias of this server stands for.
    pub(super) fn key_id(&self, alias: &str) -> Option<String> {
        let encoded = alias.strip_prefix(&self.server_aliases())?;
        Some(encoded.replace("_2e", ".").replace("_2b", "+"))
    }

    /// What the descriptions of the trust domain's keys begin with.
    pub(super) fn domain_descriptions(&self) -> String {
        format!("SPIRE_SERVER_KEY/{}", dotless(&self.trust_domain))
    }

    pub(super) fn description(&self, key_id: &str) -> String {
        format!("{}/{}", self.domain_descriptions(), clean(key_id))
    }

    /// True for a description of a key of this trust domain, and no other whose name begins alike.
    pub(super) fn describes_ours(&self, description: &str) -> bool {
        let rest = description.strip_prefix(&self.domain_descriptions());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

fn dotless(trust_domain: &str) -> String {
    trust_domain.replace('.', "_")
}

/// Without empty segments, as SPIRE joins paths.
fn clean(path: &str) -> String {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    segments.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_spire() {
        let names = Names::new("prod.example.org", "server-1");
        let alias = names.alias("x509-CA-A");
        assert_eq!(alias, "alias/SPIRE_SERVER/prod_example_org/server-1/x509-CA-A");
        assert_eq!(names.key_id(&alias).as_deref(), Some("x509-CA-A"));
        let odd = names.alias("a.b+c");
        assert_eq!(odd, "alias/SPIRE_SERVER/prod_example_org/server-1/a_2eb_2bc");
        assert_eq!(names.key_id(&odd).as_deref(), Some("a.b+c"));
        assert_eq!(names.key_id("alias/SPIRE_SERVER/prod_example_org/server-10/x509-CA-A"), None);
        assert_eq!(names.description("JWT-Signer-B"), "SPIRE_SERVER_KEY/prod_example_org/JWT-Signer-B");
        assert!(names.describes_ours("SPIRE_SERVER_KEY/prod_example_org/a"));
        assert!(!names.describes_ours("SPIRE_SERVER_KEY/prod_example_org2/a"));
        assert!(!names.describes_ours("something"));
        assert_eq!(Names::new("a", "b//c/").server_aliases(), "alias/SPIRE_SERVER/a/b/c/");
    }
}
