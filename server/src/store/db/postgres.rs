//! PostgreSQL's connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgListener, PgPoolOptions, PgSslMode};
use sqlx::query::Query;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Postgres};
use tracing::log::LevelFilter;

use super::Value;
use super::args::bind;
use crate::store::{PgHost, PostgresConfig, SslMode, StoreError};

/// How long an attempt to write or to read may take before its connection counts as lost. Longer than the limits
/// inside the database, which know more.
pub(super) const ATTEMPT: Duration = Duration::from_secs(12);
/// How long the next row of a long answer may take.
const NEXT_ROW: Duration = Duration::from_secs(30);

/// One round trip that begins a transaction, bounds it and takes the lock of all writers, which commit or rollback
/// gives back. A server that stalls in the middle loses its transaction after ten seconds, so it blocks nobody longer.
/// The settings are the transaction's, so that a pooler hands no others on. Acknowledged means durable, whatever the
/// database's default is.
pub(super) const BEGIN_WRITE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED;
    SET LOCAL lock_timeout = '8s'; SET LOCAL statement_timeout = '9s';
    SET LOCAL idle_in_transaction_session_timeout = '10s';
    SELECT pg_advisory_xact_lock(8391162171410441324),
        CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', true) END";

/// A snapshot. Loading a million entries may take long, as long as they keep coming.
pub(super) const BEGIN_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = '60s'";

/// Opens connections to one database.
#[derive(Clone)]
pub(in super::super) struct PgConnector(Arc<Settings>);

/// Silent in `Debug`: the driver's options would show the password.
struct Settings {
    hosts: Vec<PgConnectOptions>,
    connect_timeout: Duration,
}

impl PgConnector {
    pub(in super::super) fn new(config: &PostgresConfig) -> Result<Self, StoreError> {
        let hosts = config.hosts.iter().map(|host| options(config, host)).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Settings { hosts, connect_timeout: config.connect_timeout })))
    }

    /// A connection that hears notifications.
    pub(in super::super) async fn listener(&self) -> Result<PgListener, StoreError> {
        // The driver listens on a pool's connection only, so the host is chosen first.
        let (conn, options) = self.choose().await?;
        conn.close().await?;
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
        limit(self.0.connect_timeout, async { Ok(PgListener::connect_with(&pool).await?) }).await
    }

    pub(in super::super) async fn connect(&self) -> Result<PgConnection, StoreError> {
        self.choose().await.map(|(conn, _)| conn)
    }

    /// Tries the hosts in order. Where there are several, one that takes no writes is passed over.
    async fn choose(&self) -> Result<(PgConnection, &PgConnectOptions), StoreError> {
        let mut failed = None;
        for options in &self.0.hosts {
            let one_of_many = self.0.hosts.len() > 1;
            match limit(self.0.connect_timeout, connect(options, one_of_many)).await {
                Ok(conn) => return Ok((conn, options)),
                Err(error) => failed = Some(failed.unwrap_or(error)),
            }
        }
        Err(failed.unwrap_or_else(|| StoreError::Config("the connection string names no host".into())))
    }
}

async fn connect(options: &PgConnectOptions, one_of_many: bool) -> Result<PgConnection, StoreError> {
    let mut conn = options.connect().await?;
    if one_of_many {
        let standby: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut conn).await?;
        if standby {
            let text = format!("{} is a standby, which takes no writes", options.get_host());
            return Err(sqlx::Error::Io(io::Error::other(text)).into());
        }
    }
    Ok(conn)
}

/// The driver's form of one host. It looks a missing password up in the password file if it is given a URL.
fn options(config: &PostgresConfig, host: &PgHost) -> Result<PgConnectOptions, StoreError> {
    let mut options = match &config.password {
        Some(password) => PgConnectOptions::new_without_pgpass().password(password),
        None => url(config, host).parse::<PgConnectOptions>()?,
    };
    options = options.host(&host.name).port(host.port).application_name(&config.application_name);
    if let Some(user) = &config.user {
        options = options.username(user);
    }
    if let Some(database) = &config.database {
        options = options.database(database);
    }
    match &config.root_cert {
        Some(root) => options = options.ssl_root_cert(root),
        None if config.ssl_mode == SslMode::VerifyFull => {
            options = options.ssl_root_cert_from_pem(system_roots()?);
        }
        None => {}
    }
    if let Some((cert, key)) = &config.client_cert {
        options = options.ssl_client_cert(cert).ssl_client_key(key);
    }
    let mode = if host.is_socket() { SslMode::Disable } else { config.ssl_mode };
    options = options.ssl_mode(match mode {
        SslMode::Disable => PgSslMode::Disable,
        SslMode::Prefer => PgSslMode::Prefer,
        SslMode::Require => PgSslMode::Require,
        SslMode::VerifyCa => PgSslMode::VerifyCa,
        SslMode::VerifyFull => PgSslMode::VerifyFull,
    });
    options = options.log_statements(LevelFilter::Off).log_slow_statements(LevelFilter::Off, Duration::ZERO);
    Ok(options.options(config.runtime.iter().map(|(name, value)| (name, value))))
}

/// The roots that this system trusts, in PEM.
fn system_roots() -> Result<Vec<u8>, StoreError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(StoreError::Config(
            "sslmode=verify-full needs sslrootcert: this system has no CA certificates".into(),
        ));
    }
    let all = found.certs.iter().map(|cert| pem::encode(&pem::Pem::new("CERTIFICATE", cert.as_ref())));
    Ok(all.collect::<String>().into_bytes())
}

fn url(config: &PostgresConfig, host: &PgHost) -> String {
    let escape = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let user = config.user.as_deref().map(|user| format!("{}@", escape(user))).unwrap_or_default();
    let name = if host.name.contains(':') { format!("[{}]", host.name) } else { escape(&host.name) };
    let database = config.database.as_deref().map(escape).unwrap_or_default();
    format!("postgres://{user}{name}:{}/{database}", host.port)
}

/// Fails work that takes longer than this.
pub(super) async fn limit<T>(
    longest: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(longest, work).await {
        Ok(result) => result,
        Err(_) => Err(silence(longest)),
    }
}

fn silence(longest: Duration) -> StoreError {
    let text = format!("no answer within {} seconds", longest.as_secs());
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, text)).into()
}

/// Rows that stop coming are an error.
pub(super) fn in_time<T>(
    rows: impl Stream<Item = Result<T, StoreError>> + Send,
) -> impl Stream<Item = Result<T, StoreError>> + Send {
    futures_util::stream::unfold(Box::pin(rows), |mut rows| async {
        match tokio::time::timeout(NEXT_ROW, rows.next()).await {
            Ok(row) => row.map(|row| (row, rows)),
            Err(_) => Some((Err(silence(NEXT_ROW)), rows)),
        }
    })
}

pub(super) fn query<'q>(sql: &'static str, args: &[Value<'_>]) -> Query<'q, Postgres, PgArguments> {
    bind!(sqlx::query(sql), args)
}
