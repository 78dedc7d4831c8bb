//! Where a PostgreSQL database is and how to speak to it: SPIRE's connection strings, with lib/pq's defaults.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use svid_core::libpq::Settings;
use zeroize::Zeroizing;

/// How long connecting may take where `connect_timeout` says nothing. lib/pq would wait for ever.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PORT: u16 = 5432;
const HOST: &str = "localhost";

/// How the connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the database offers it.
    Prefer,
    /// TLS, but anybody may be at the other end.
    Require,
    /// The certificate comes from a trusted CA.
    VerifyCa,
    /// And it names the host.
    VerifyFull,
}

/// The end of a connection: a name or address, or a directory with a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgHost {
    /// Starts with `/` for a directory.
    pub name: String,
    /// Also a part of the socket's name.
    pub port: u16,
}

impl PgHost {
    /// True for a Unix socket, which knows no TLS.
    pub fn is_socket(&self) -> bool {
        self.name.starts_with('/')
    }
}

/// A checked connection string and what SPIRE has beside it.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// Tried in order.
    pub hosts: Vec<PgHost>,
    /// The system's user name when absent.
    pub user: Option<String>,
    /// Looked for in the password file when absent.
    pub password: Option<Zeroizing<String>>,
    /// As the user when absent.
    pub database: Option<String>,
    /// How the connection is protected.
    pub ssl_mode: SslMode,
    /// Roots that the database's certificate is checked against; the system's when absent.
    pub root_cert: Option<PathBuf>,
    /// This server's certificate and key.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// Per host.
    pub connect_timeout: Duration,
    /// What the database shows in its list of sessions.
    pub application_name: String,
    /// Settings of every session, such as `search_path`.
    pub runtime: Vec<(String, String)>,
    /// `max_open_conns`; 0 for no limit of the operator's.
    pub max_open_conns: u32,
    /// `max_idle_conns`.
    pub max_idle_conns: u32,
    /// `conn_max_lifetime`.
    pub conn_max_lifetime: Option<Duration>,
}

/// All but the password.
impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("hosts", &self.hosts)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("ssl_mode", &self.ssl_mode)
            .finish_non_exhaustive()
    }
}

/// Keys that say how lib/pq speaks the protocol; this server's driver has its own way.
const NO_EFFECT: [&str; 10] = [
    "binary_parameters",
    "disable_prepared_binary_result",
    "sslsni",
    "datestyle",
    "tz",
    "min_protocol_version",
    "max_protocol_version",
    "ssl_max_protocol_version",
    "krbsrvname",
    "krbspn",
];
/// Keys whose meaning would be lost in silence.
const REFUSED: [(&str, &str); 4] = [
    ("service", "write its settings into the connection string"),
    ("servicefile", "write its settings into the connection string"),
    ("passfile", "set the environment variable PGPASSFILE"),
    ("sslinline", "give sslrootcert, sslcert and sslkey as files"),
];

impl PostgresConfig {
    /// Reads a connection string in either form; [`PostgresConfig::with_files`] completes it. What it does not say comes from the environment that lib/pq reads
    /// (`PGHOST` and so on) through `env`.
    /// # Errors
    /// A sentence that names the key and never a value that may be secret.
    pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let settings = Settings::parse(text).map_err(|error| error.to_string())?;
        let mut from = Source { settings, env };
        from.refuse()?;
        let hosts = from.hosts()?;
        let ssl_mode = from.ssl_mode(&hosts)?;
        let config = Self {
            ssl_mode,
            user: from.text("user", "PGUSER"),
            password: from.secret("password", "PGPASSWORD"),
            database: from.text("dbname", "PGDATABASE"),
            root_cert: from.text("sslrootcert", "PGSSLROOTCERT").map(PathBuf::from),
            client_cert: from.client_cert()?,
            connect_timeout: from.connect_timeout()?,
            application_name: from.application_name(),
            runtime: from.runtime()?,
            max_open_conns: 0,
            max_idle_conns: 0,
            conn_max_lifetime: None,
            hosts,
        };
        Ok(config)
    }

    /// SPIRE's keys for files, which it reads for MySQL only, stand in for those of the connection string. A root says
    /// that the other end is to be checked.
    /// # Errors
    /// A sentence.
    pub fn with_files(
        mut self,
        root: Option<String>,
        client: Option<(String, String)>,
    ) -> Result<Self, String> {
        self.root_cert = self.root_cert.or(root.map(PathBuf::from));
        self.client_cert = self.client_cert.or(client.map(|(cert, key)| (cert.into(), key.into())));
        self.checked()
    }

    /// `require` with a root at hand checks against it, as in libpq; roots of the system's make sense with names only.
    fn checked(mut self) -> Result<Self, String> {
        if self.root_cert.as_deref() == Some(Path::new("system")) {
            self.root_cert = None;
            if self.ssl_mode != SslMode::VerifyFull && self.ssl_mode != SslMode::Disable {
                return Err("sslrootcert=system needs sslmode=verify-full".into());
            }
        }
        match (self.ssl_mode, &self.root_cert) {
            (SslMode::Require, Some(_)) => self.ssl_mode = SslMode::VerifyCa,
            (SslMode::VerifyCa, None) => {
                return Err("sslmode=verify-ca needs sslrootcert: any public CA would do otherwise".into());
            }
            _ => {}
        }
        Ok(self)
    }
}

struct Source<'e> {
    settings: Settings,
    env: &'e dyn Fn(&str) -> Option<String>,
}

impl Source<'_> {
    fn secret(&mut self, key: &str, variable: &str) -> Option<Zeroizing<String>> {
        let fallback = || (self.env)(variable).filter(|text| !text.is_empty()).map(Zeroizing::new);
        self.settings.take(key).or_else(fallback)
    }

    fn text(&mut self, key: &str, variable: &str) -> Option<String> {
        self.secret(key, variable).map(|text| text.as_str().to_owned())
    }

    fn refuse(&mut self) -> Result<(), String> {
        for (key, instead) in REFUSED {
            if self.settings.take(key).is_some() {
                return Err(format!("{key} is not supported: {instead}"));
            }
        }
        for key in NO_EFFECT {
            self.settings.take(key);
        }
        Ok(())
    }

    fn hosts(&mut self) -> Result<Vec<PgHost>, String> {
        let names = self.text("host", "PGHOST");
        // The address saves a look-up; the name is what a certificate is checked for.
        let addresses = self.text("hostaddr", "PGHOSTADDR");
        let names = match (names, addresses) {
            (Some(_), Some(_)) => {
                return Err("host and hostaddr together are not supported: give host".into());
            }
            (names, addresses) => names.or(addresses).unwrap_or_else(|| HOST.to_owned()),
        };
        let ports = self.text("port", "PGPORT").unwrap_or_default();
        let ports: Vec<&str> = ports.split(',').collect();
        let names: Vec<&str> = names.split(',').collect();
        if ports.len() != 1 && ports.len() != names.len() {
            return Err(format!("{} hosts, but {} ports", names.len(), ports.len()));
        }
        let host = |(at, name): (usize, &&str)| {
            let port = match ports.get(at).or(ports.first()) {
                None | Some(&"") => PORT,
                Some(port) => port.parse::<u16>().ok().filter(|port| *port != 0).ok_or("port: not a port")?,
            };
            let name = if name.is_empty() { HOST } else { name };
            Ok(PgHost { name: name.to_owned(), port })
        };
        self.check_wishes()?;
        names.iter().enumerate().map(host).collect()
    }

    /// This server always looks for the one host that takes writes.
    fn check_wishes(&mut self) -> Result<(), String> {
        let role = self.text("target_session_attrs", "PGTARGETSESSIONATTRS");
        if !matches!(role.as_deref(), None | Some("any" | "read-write" | "primary")) {
            return Err(
                "target_session_attrs: this server writes, so only read-write, primary and any".into()
            );
        }
        if !matches!(self.text("load_balance_hosts", "PGLOADBALANCEHOSTS").as_deref(), None | Some("disable"))
        {
            return Err("load_balance_hosts: hosts are tried in order".into());
        }
        match self.text("client_encoding", "PGCLIENTENCODING").map(|text| text.to_ascii_lowercase()) {
            None => Ok(()),
            Some(name) if name == "utf8" || name == "utf-8" || name == "unicode" => Ok(()),
            Some(_) => Err("client_encoding: must be UTF8".into()),
        }
    }

    fn ssl_mode(&mut self, hosts: &[PgHost]) -> Result<SslMode, String> {
        let negotiation = self.text("sslnegotiation", "PGSSLNEGOTIATION");
        if !matches!(negotiation.as_deref(), None | Some("postgres")) {
            return Err("sslnegotiation: only \"postgres\" is supported".into());
        }
        let oldest = self.text("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION");
        if !matches!(oldest.as_deref(), None | Some("TLSv1" | "TLSv1.1" | "TLSv1.2")) {
            return Err(
                "ssl_min_protocol_version: TLS 1.2 and 1.3 are spoken, and that cannot be narrowed".into()
            );
        }
        let mode = self.text("sslmode", "PGSSLMODE");
        let mode = match mode.as_deref() {
            None | Some("require") => SslMode::Require,
            Some("disable") => SslMode::Disable,
            Some("allow" | "prefer") => SslMode::Prefer,
            Some("verify-ca") => SslMode::VerifyCa,
            Some("verify-full") => SslMode::VerifyFull,
            Some(_) => {
                return Err(
                    "sslmode: must be disable, allow, prefer, require, verify-ca or verify-full".into()
                );
            }
        };
        Ok(if hosts.iter().all(PgHost::is_socket) { SslMode::Disable } else { mode })
    }

    fn client_cert(&mut self) -> Result<Option<(PathBuf, PathBuf)>, String> {
        match (self.text("sslcert", "PGSSLCERT"), self.text("sslkey", "PGSSLKEY")) {
            (Some(cert), Some(key)) => Ok(Some((cert.into(), key.into()))),
            (None, None) => Ok(None),
            _ => Err("sslcert and sslkey are given together".into()),
        }
    }

    fn connect_timeout(&mut self) -> Result<Duration, String> {
        let Some(text) = self.text("connect_timeout", "PGCONNECT_TIMEOUT") else {
            return Ok(CONNECT_TIMEOUT);
        };
        match text.parse::<u32>() {
            Ok(0) => Ok(CONNECT_TIMEOUT),
            Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
            Err(_) => Err("connect_timeout: must be a number of seconds".into()),
        }
    }

    fn application_name(&mut self) -> String {
        let fallback = self.text("fallback_application_name", "");
        let name = self.text("application_name", "PGAPPNAME").or(fallback);
        name.unwrap_or_else(|| "svid-server".to_owned())
    }

    /// What is left goes to the database as it is, which refuses what it does not know.
    fn runtime(&mut self) -> Result<Vec<(String, String)>, String> {
        let mut runtime = Vec::new();
        if let Some(options) = self.settings.take("options") {
            runtime.extend(runtime_options(&options)?);
        }
        for (key, value) in self.settings.rest() {
            let named =
                !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._".contains(&b));
            if !named {
                return Err("a key that is no setting's name: values with spaces need single quotes".into());
            }
            runtime.push((key.to_owned(), value.to_owned()));
        }
        Ok(runtime)
    }
}

/// `-c name=value -c name=value`, as `PGOPTIONS` has it.
fn runtime_options(text: &str) -> Result<Vec<(String, String)>, String> {
    let wrong = || "options: must be \"-c name=value\", once or more".to_owned();
    let mut words = text.split_whitespace();
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        let pair = match word.strip_prefix("-c") {
            Some("") => words.next().ok_or_else(wrong)?,
            Some(pair) => pair,
            None => word.strip_prefix("--").ok_or_else(wrong)?,
        };
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        found.push((name.to_owned(), value.to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PostgresConfig, String> {
        PostgresConfig::parse(text, &|_| None)?.with_files(None, None)
    }

    fn modes(text: &str, want: SslMode) {
        assert_eq!(parse(text).unwrap().ssl_mode, want, "{text}");
    }

    fn refused(text: &str, word: &str) {
        let error = parse(text).unwrap_err();
        assert!(error.contains(word) && !error.contains("hush"), "{text}: {error}");
    }

    #[test]
    fn what_is_not_said_has_lib_pqs_default() {
        let config = parse("").unwrap();
        assert_eq!(config.hosts, [PgHost { name: "localhost".into(), port: 5432 }]);
        assert_eq!((config.ssl_mode, &config.user, &config.database), (SslMode::Require, &None, &None));
        let env = |name: &str| match name {
            "PGHOST" => Some("from-env".to_owned()),
            "PGPASSWORD" => Some("hush".to_owned()),
            "PGSSLMODE" => Some("disable".to_owned()),
            _ => None,
        };
        let config = PostgresConfig::parse("sslmode=prefer", &env).unwrap();
        assert_eq!((config.hosts[0].name.as_str(), config.ssl_mode), ("from-env", SslMode::Prefer));
        assert!(config.password.is_some() && !format!("{config:?}").contains("hush"));
    }

    #[test]
    fn modes_of_protection() {
        modes("sslmode=disable", SslMode::Disable);
        modes("host=/run/postgresql sslmode=verify-full", SslMode::Disable);
        modes("sslmode=require sslrootcert=/ca.pem", SslMode::VerifyCa);
        modes("sslmode=verify-full sslrootcert=system", SslMode::VerifyFull);
        modes("postgres://h/d?sslmode=verify-full", SslMode::VerifyFull);
        refused("sslmode=verify-ca", "sslrootcert");
        refused("sslrootcert=system", "verify-full");
        refused("sslmode=maybe password=hush", "sslmode");
        refused("sslcert=/a", "sslkey");
    }

    #[test]
    fn several_hosts_and_settings_of_the_session() {
        let config =
            parse("host=a,b port=1,2 target_session_attrs=read-write search_path=x options='-c geqo=off'");
        let config = config.unwrap();
        let hosts: Vec<_> = config.hosts.iter().map(|host| (host.name.as_str(), host.port)).collect();
        assert_eq!(hosts, [("a", 1), ("b", 2)]);
        let want = [("geqo", "off"), ("search_path", "x")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(config.runtime, want);
        refused("host=a,b,c port=1,2", "3 hosts");
        refused("port=http", "port");
        refused("target_session_attrs=standby", "writes");
        refused("service=hush", "service is not supported");
        refused("password=a hush=b hush", "key number 3");
        refused("'password=hush x'=1", "key");
    }
}
