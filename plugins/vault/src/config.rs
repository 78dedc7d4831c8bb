//! Where Vault is, and how a plugin proves who it is. Keys, environment variables and defaults are SPIRE's.

use std::path::PathBuf;

use svid_core::hcl::{Reader, Unknown};

use crate::secret::Secret;

/// Reads an environment variable; `None` if it is not set.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The variables of this process.
pub fn process_env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Where Vault is, and how a plugin proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// `http://` or `https://`, host, port and perhaps a path, without a slash at the end.
    pub(crate) address: String,
    pub(crate) namespace: Option<String>,
    /// The only roots that count, where there is a file. The operating system's otherwise.
    pub(crate) ca_cert_path: Option<PathBuf>,
    pub(crate) insecure_skip_verify: bool,
    pub(crate) auth: Auth,
}

/// How a plugin proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Auth {
    Token { token: Secret },
    Cert { mount: String, role: String, cert_path: PathBuf, key_path: PathBuf },
    AppRole { mount: String, role_id: String, secret_id: Secret },
    Kubernetes { mount: String, role: String, token_path: PathBuf },
}

const STANZAS: [&str; 4] = ["token_auth", "cert_auth", "approle_auth", "k8s_auth"];

impl Connection {
    /// Reads the keys that both plugins share. `None` only together with a recorded mistake.
    pub(crate) fn read(r: &mut Reader, env: Env<'_>) -> Option<Self> {
        let address = address(r, env);
        let namespace = look_up(r, env, "namespace", "VAULT_NAMESPACE").value;
        let ca_cert_path = look_up(r, env, "ca_cert_path", "VAULT_CACERT").value;
        let insecure_skip_verify = r.bool("insecure_skip_verify").unwrap_or_default();
        if insecure_skip_verify {
            r.warn(
                "insecure_skip_verify",
                "TLS verification of Vault certificates is skipped. This is only recommended for test environments.",
            );
        }
        let auth = auth(r, env);
        Some(Self {
            address: address?,
            namespace: namespace_path(r, &namespace)?,
            ca_cert_path: (!ca_cert_path.is_empty()).then(|| ca_cert_path.into()),
            insecure_skip_verify,
            auth: auth?,
        })
    }
}

/// A value and where it came from.
struct Found {
    value: String,
    variable: Option<String>,
}

impl Found {
    /// Where the value came from, and what to do when it is missing.
    fn origin(&self, key: &str, variable: &str) -> String {
        match &self.variable {
            Some(name) if self.value.is_empty() => {
                format!(
                    "the environment variable {name} is set and empty, and counts more than the file: unset it"
                )
            }
            Some(name) => format!("from the environment variable {name}"),
            None if self.value.is_empty() => {
                format!("found nothing: set {key} or the environment variable {variable}")
            }
            None => format!("from the key {key}"),
        }
    }
}

/// The environment counts more than the file, even where it says nothing, as in SPIRE. OpenBao's name for a variable
/// counts more than Vault's, as in OpenBao.
fn look_up(r: &mut Reader, env: Env<'_>, key: &str, variable: &str) -> Found {
    let in_file = r.string(key).unwrap_or_default();
    for name in [variable.replacen("VAULT_", "BAO_", 1), variable.to_owned()] {
        if let Some(value) = env(&name) {
            return Found { value, variable: Some(name) };
        }
    }
    Found { value: in_file, variable: None }
}

fn address(r: &mut Reader, env: Env<'_>) -> Option<String> {
    let found = look_up(r, env, "vault_addr", "VAULT_ADDR");
    let origin = found.origin("vault_addr", "VAULT_ADDR");
    if found.value.is_empty() {
        r.error("vault_addr", format!("expected the URL of Vault; {origin}"));
        return None;
    }
    match check_address(&found.value) {
        Ok(address) => {
            if address.starts_with("http://") && !is_loopback(&address) {
                r.warn("vault_addr", "secrets go over the network in the clear: use https");
            }
            Some(address)
        }
        // The value is not repeated: somebody may have put a password into it.
        Err(rule) => {
            r.error(
                "vault_addr",
                format!("expected a URL such as https://vault.example.org:8200; {rule} ({origin})"),
            );
            None
        }
    }
}

fn check_address(text: &str) -> Result<String, &'static str> {
    let url = reqwest::Url::parse(text).map_err(|_| "found something that is no URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("found another scheme than http and https");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("found no host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("found a user name or password in it, which belong into an auth stanza");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("found a query or fragment behind it");
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// True if the host of this URL is the own machine.
pub(crate) fn is_loopback(address: &str) -> bool {
    let url = reqwest::Url::parse(address).ok();
    let host = url.as_ref().and_then(reqwest::Url::host_str).unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// A namespace without slashes at its ends. `None` only together with a recorded mistake.
fn namespace_path(r: &mut Reader, text: &str) -> Option<Option<String>> {
    let trimmed = text.trim_matches('/');
    if trimmed.bytes().any(|byte| !byte.is_ascii_graphic()) {
        r.error("namespace", format!("expected a path such as team/a in printable ASCII, found {text:?}"));
        return None;
    }
    Some((!trimmed.is_empty()).then(|| trimmed.to_owned()))
}

/// Where an engine or auth method is mounted: a path without slashes at its ends.
pub(crate) fn mount(r: &mut Reader, key: &str, default: &str) -> Option<String> {
    let text = r.string(key).unwrap_or_default();
    mount_path(r, key, &text, default)
}

fn mount_path(r: &mut Reader, key: &str, text: &str, default: &str) -> Option<String> {
    let path = if text.is_empty() { default } else { text.trim_matches('/') };
    let is_segment = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%\\".contains(&byte))
    };
    if !path.split('/').all(is_segment) {
        r.error(
            key,
            format!("expected the path of a mount such as {default} or team/{default}, found {text:?}"),
        );
        return None;
    }
    Some(path.to_owned())
}

/// A mount whose path an environment variable may give, too.
pub(crate) fn mount_or_env(
    r: &mut Reader,
    env: Env<'_>,
    key: &str,
    variable: &str,
    default: &str,
) -> Option<String> {
    let found = look_up(r, env, key, variable);
    mount_path(r, key, &found.value, default)
}

fn auth(r: &mut Reader, env: Env<'_>) -> Option<Auth> {
    let found: Vec<&str> = STANZAS.into_iter().filter(|stanza| r.has(stanza)).collect();
    let readers: [fn(&mut Reader, Env<'_>) -> Option<Auth>; 4] = [token, cert, approle, kubernetes];
    let mut auth = None;
    for (stanza, read) in STANZAS.into_iter().zip(readers) {
        let one = r.block(stanza, |inner| {
            let one = read(inner, env);
            inner.finish(Unknown::Refuse);
            one
        });
        auth = one.flatten().or(auth);
    }
    match found.as_slice() {
        [_] => auth,
        [] => {
            r.error(
                "",
                "must be configured one of these authentication method 'Token, Client Certificate, AppRole or Kubernetes': \
                 expected exactly one of token_auth, cert_auth, approle_auth and k8s_auth, found none",
            );
            None
        }
        [first, more @ ..] => {
            let others = more.join(" and ");
            r.error(
                more[0],
                format!("only one authentication method can be configured: found {first} and {others}"),
            );
            None
        }
    }
}

fn required(r: &mut Reader, env: Env<'_>, key: &str, variable: &str) -> Option<String> {
    let found = look_up(r, env, key, variable);
    if found.value.trim().is_empty() {
        r.error(key, format!("{key} is required; {}", found.origin(key, variable)));
        return None;
    }
    Some(found.value)
}

fn token(r: &mut Reader, env: Env<'_>) -> Option<Auth> {
    let token = Secret::new(required(r, env, "token", "VAULT_TOKEN")?);
    if token.expose().bytes().any(|byte| !byte.is_ascii_graphic()) {
        r.error("token", "expected printable ASCII without spaces, found something else (not shown)");
        return None;
    }
    Some(Auth::Token { token })
}

fn cert(r: &mut Reader, env: Env<'_>) -> Option<Auth> {
    let mount = mount(r, "cert_auth_mount_point", "cert");
    let role = r.string("cert_auth_role_name").unwrap_or_default();
    let cert_path = required(r, env, "client_cert_path", "VAULT_CLIENT_CERT");
    let key_path = required(r, env, "client_key_path", "VAULT_CLIENT_KEY");
    Some(Auth::Cert { mount: mount?, role, cert_path: cert_path?.into(), key_path: key_path?.into() })
}

fn approle(r: &mut Reader, env: Env<'_>) -> Option<Auth> {
    let mount = mount(r, "approle_auth_mount_point", "approle");
    let role_id = required(r, env, "approle_id", "VAULT_APPROLE_ID");
    let secret_id = required(r, env, "approle_secret_id", "VAULT_APPROLE_SECRET_ID").map(Secret::new);
    Some(Auth::AppRole { mount: mount?, role_id: role_id?.trim().to_owned(), secret_id: secret_id? })
}

fn kubernetes(r: &mut Reader, _: Env<'_>) -> Option<Auth> {
    let mount = mount(r, "k8s_auth_mount_point", "kubernetes");
    let mut required = |key: &str| {
        let value = r.string(key).filter(|value| !value.is_empty());
        if value.is_none() {
            r.error(key, format!("{key} is required"));
        }
        value
    };
    let (role, token_path) = (required("k8s_auth_role_name"), required("token_path"));
    Some(Auth::Kubernetes { mount: mount?, role: role?, token_path: token_path?.into() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "config_tests.rs"]
mod tests;
