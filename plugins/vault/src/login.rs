//! Logging in, by each of the four methods. The bodies are ours: vaultrs would name the wrong field for certificates, and
//! hold secrets in types that do not wipe themselves.

use async_trait::async_trait;
use rustify::endpoint::Endpoint;
use rustify::enums::{RequestMethod, RequestType, ResponseType};
use rustify::errors::ClientError;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::config::Auth;
use crate::error::VaultError;
use crate::files;
use crate::secret::Secret;

/// `POST auth/<mount>/login`.
pub(crate) struct LoginRequest {
    mount: String,
    proof: Proof,
}

enum Proof {
    Cert { name: String },
    AppRole { role_id: String, secret_id: Secret },
    Kubernetes { role: String, jwt: Secret },
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    /// An empty name has Vault try every role.
    Cert {
        name: &'a str,
    },
    AppRole {
        role_id: &'a str,
        secret_id: &'a str,
    },
    Kubernetes {
        role: &'a str,
        jwt: &'a str,
    },
}

impl LoginRequest {
    /// `None` for the token method, which has no login. A service account token is read anew each time.
    pub(crate) fn new(auth: &Auth) -> Result<Option<Self>, VaultError> {
        let (mount, proof) = match auth {
            Auth::Token { .. } => return Ok(None),
            Auth::Cert { mount, role, .. } => (mount, Proof::Cert { name: role.clone() }),
            Auth::AppRole { mount, role_id, secret_id } => {
                (mount, Proof::AppRole { role_id: role_id.clone(), secret_id: secret_id.clone() })
            }
            Auth::Kubernetes { mount, role, token_path } => {
                let bytes = files::read("token_path", token_path)?;
                let jwt = std::str::from_utf8(&bytes)
                    .map_err(|_| VaultError::File(format!("token_path {token_path:?}: not UTF-8")))?;
                (mount, Proof::Kubernetes { role: role.clone(), jwt: Secret::new(jwt.trim().to_owned()) })
            }
        };
        Ok(Some(Self { mount: mount.clone(), proof }))
    }

    /// What must not be repeated, should Vault repeat it.
    pub(crate) fn secret(&self) -> Option<&Secret> {
        match &self.proof {
            Proof::Cert { .. } => None,
            Proof::AppRole { secret_id, .. } => Some(secret_id),
            Proof::Kubernetes { jwt, .. } => Some(jwt),
        }
    }

    fn json(&self) -> Body<'_> {
        match &self.proof {
            Proof::Cert { name } => Body::Cert { name },
            Proof::AppRole { role_id, secret_id } => Body::AppRole { role_id, secret_id: secret_id.expose() },
            Proof::Kubernetes { role, jwt } => Body::Kubernetes { role, jwt: jwt.expose() },
        }
    }
}

#[async_trait]
impl Endpoint for LoginRequest {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        format!("auth/{}/login", self.mount)
    }

    fn method(&self) -> RequestMethod {
        RequestMethod::POST
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        // Reserved in full, so that growing leaves no copies behind; whoever takes it wipes it.
        let secret = self.secret().map_or(0, |secret| secret.expose().len());
        let mut body = Zeroizing::new(Vec::with_capacity(2 * secret + 1024));
        serde_json::to_writer(&mut *body, &self.json())
            .map_err(|error| ClientError::DataParseError { source: error.into() })?;
        Ok(Some(std::mem::take(&mut *body)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sent(auth: &Auth) -> (String, String) {
        let request = LoginRequest::new(auth).unwrap().unwrap();
        (request.path(), String::from_utf8(request.body().unwrap().unwrap()).unwrap())
    }

    #[test]
    fn each_method_says_what_vault_reads() {
        let mount = "team/x".to_owned();
        let cert = Auth::Cert {
            mount: mount.clone(),
            role: "r".into(),
            cert_path: "c".into(),
            key_path: "k".into(),
        };
        assert_eq!(sent(&cert), ("auth/team/x/login".into(), r#"{"name":"r"}"#.into()));
        let (role_id, secret_id) = ("r".into(), Secret::new("s".into()));
        let approle = Auth::AppRole { mount: mount.clone(), role_id, secret_id };
        assert_eq!(sent(&approle).1, r#"{"role_id":"r","secret_id":"s"}"#);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "e.y.j\n").unwrap();
        let k8s = Auth::Kubernetes { mount, role: "r".into(), token_path: file.path().into() };
        assert_eq!(sent(&k8s).1, r#"{"role":"r","jwt":"e.y.j"}"#);
        assert!(LoginRequest::new(&Auth::Token { token: Secret::new("t".into()) }).unwrap().is_none());
    }
}
