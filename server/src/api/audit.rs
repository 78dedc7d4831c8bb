//! The audit log: one `API accessed` line a call, one an item for batches, with SPIRE's field names.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tonic::Code;

use super::caller::{Call, Peer};

/// Fields that a call adds to its line. Absent ones are not printed.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)] // SPIRE's names, see `pkg/common/telemetry/names.go`
pub struct Fields {
    pub admin: Option<bool>,
    pub agent_id: Option<String>,
    pub agent_version: Option<String>,
    pub audience: Option<String>,
    pub bundle_endpoint_profile: Option<&'static str>,
    pub bundle_endpoint_url: Option<String>,
    pub by_banned: Option<bool>,
    pub by_can_reattest: Option<bool>,
    pub by_selector_match: Option<&'static str>,
    pub by_selectors: Option<String>,
    pub csr: Option<String>,
    pub dns_name: Option<String>,
    pub downstream: Option<bool>,
    pub endpoint_spiffe_id: Option<String>,
    pub entry_id: Option<String>,
    pub expires_at: Option<String>,
    pub federates_with: Option<String>,
    pub hint: Option<String>,
    pub jwt_authority_key_id: Option<String>,
    pub local_authority_id: Option<String>,
    pub subject_key_id: Option<String>,
    pub mode: Option<&'static str>,
    pub new_log_level: Option<&'static str>,
    pub node_attestor_type: Option<String>,
    pub parent_id: Option<String>,
    pub selectors: Option<String>,
    pub spiffe_id: Option<String>,
    pub subject: Option<String>,
    pub trust_domain_id: Option<String>,
    pub ttl: Option<i64>,
}

/// The audit state of one call.
#[derive(Debug, Default)]
pub struct Audit {
    /// `None` when the audit log is off, so that a call costs nothing then.
    fields: Option<Box<Mutex<Fields>>>,
    done: AtomicBool,
}

impl Audit {
    /// Ready to collect, if the audit log is on.
    pub fn new(enabled: bool) -> Self {
        Self { fields: enabled.then(Box::default), done: AtomicBool::new(false) }
    }

    /// True if lines are written.
    pub fn is_on(&self) -> bool {
        self.fields.is_some()
    }

    /// Adds fields to the call's line. `add` only runs when the audit log is on.
    pub fn add(&self, add: impl FnOnce(&mut Fields)) {
        if let Some(fields) = &self.fields {
            add(&mut fields.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        }
    }

    fn snapshot(&self) -> Option<Fields> {
        let fields = self.fields.as_ref()?;
        Some(fields.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
    }
}

impl Call {
    /// Writes the line of one item of a batch; the call writes no other then.
    pub fn audit_item(&self, code: Code, message: &str, add: impl FnOnce(&mut Fields)) {
        if self.audit.is_on() {
            self.audit.done.store(true, Ordering::Relaxed);
            let mut fields = Fields::default();
            add(&mut fields);
            self.write_audit(&fields, code, message);
        }
    }

    /// Keeps the answer's head from being taken for the end of a stream that goes on.
    pub fn audit_later(&self) {
        self.audit.done.store(true, Ordering::Relaxed);
    }

    /// Writes the line of a stream that ended.
    pub fn audit_end(&self, code: Code, message: &str) {
        if let Some(fields) = self.audit.snapshot() {
            self.write_audit(&fields, code, message);
        }
    }

    /// Writes the call's line, unless items did.
    pub fn audit_call(&self, code: Code, message: &str) {
        let by_items = self.audit.done.swap(true, Ordering::Relaxed);
        if !by_items || code != Code::Ok {
            self.audit_end(code, message);
        }
    }

    fn write_audit(&self, f: &Fields, code: Code, message: &str) {
        let (local, caller_addr) = match &self.peer {
            Peer::Local(local) => (Some(local), None),
            Peer::Tls { address, .. } => (None, Some(address.to_string())),
        };
        let failed = code != Code::Ok;
        tracing::info!(
            r#type = "audit",
            status = if failed { "error" } else { "success" },
            status_code = failed.then(|| tracing::field::debug(code)),
            status_message = failed.then_some(message),
            service = self.method.service,
            method = self.method.name,
            request_id = %uuid::Uuid::new_v4(),
            authorized_as = self.role.name(),
            authorized_via = self.via,
            caller_uid = local.map(|local| local.uid),
            caller_gid = local.map(|local| local.gid),
            caller_path = local.and_then(|local| local.path.as_deref()),
            caller_addr,
            caller_id = self.peer.identity().map(|cert| cert.id.as_str()),
            admin = f.admin,
            agent_id = f.agent_id,
            agent_version = f.agent_version,
            audience = f.audience,
            bundle_endpoint_profile = f.bundle_endpoint_profile,
            bundle_endpoint_url = f.bundle_endpoint_url,
            by_banned = f.by_banned,
            by_can_reattest = f.by_can_reattest,
            by_selector_match = f.by_selector_match,
            by_selectors = f.by_selectors,
            csr = f.csr,
            dns_name = f.dns_name,
            downstream = f.downstream,
            endpoint_spiffe_id = f.endpoint_spiffe_id,
            entry_id = f.entry_id,
            expires_at = f.expires_at,
            federates_with = f.federates_with,
            hint = f.hint,
            jwt_authority_key_id = f.jwt_authority_key_id,
            local_authority_id = f.local_authority_id,
            subject_key_id = f.subject_key_id,
            mode = f.mode,
            new_log_level = f.new_log_level,
            node_attestor_type = f.node_attestor_type,
            parent_id = f.parent_id,
            selectors = f.selectors,
            spiffe_id = f.spiffe_id,
            subject = f.subject,
            trust_domain_id = f.trust_domain_id,
            ttl = f.ttl,
            "API accessed"
        );
    }
}

/// SPIRE's way to name a CSR or key in the log: SHA-256 in hex.
pub fn hash_hex(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

#[cfg(test)]
mod tests;
