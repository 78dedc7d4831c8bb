//! The built-in `join_token` attestor.

use async_trait::async_trait;
use svid_plugin_api::{AgentNodeAttestor, AttestSession, PluginError};

use crate::config::JoinToken;

/// Sends the token and answers no challenge.
pub struct JoinTokenAttestor(JoinToken);

impl JoinTokenAttestor {
    /// Attests with this token.
    pub fn new(token: JoinToken) -> Self {
        Self(token)
    }
}

#[async_trait]
impl AgentNodeAttestor for JoinTokenAttestor {
    fn name(&self) -> &str {
        "join_token"
    }

    async fn begin(&self) -> Result<Box<dyn AttestSession>, PluginError> {
        Ok(Box::new(Session(self.0.clone())))
    }
}

struct Session(JoinToken);

#[async_trait]
impl AttestSession for Session {
    fn payload(&self) -> &[u8] {
        self.0.secret().as_bytes()
    }

    async fn respond(&mut self, _challenge: &[u8]) -> Result<Vec<u8>, PluginError> {
        Err(PluginError::denied("server issued a challenge to a join token, which has no answer"))
    }
}
