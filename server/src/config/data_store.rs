//! The `DataStore "sql"` section: SPIRE's keys, turned into where the database is.

use svid_core::hcl::{Body, Reader};

use crate::store::{PostgresConfig, StoreConfig};

/// A writer, a follower of the change log, a listener, and somebody to read.
const FEWEST_CONNECTIONS: u32 = 4;

/// The type if it is written as a block, as SPIRE has it for databases of AWS.
pub(super) fn nested_type(data: &Body) -> Option<String> {
    let item = data.items.iter().find(|item| item.key.eq_ignore_ascii_case("database_type"))?;
    let body = item.unlabelled().into_iter().next()?;
    Some(body.items.first().map(|inner| inner.key.clone()).unwrap_or_default())
}

/// `None` only together with a recorded mistake.
pub(super) fn read(r: &mut Reader, nested: Option<String>) -> Option<StoreConfig> {
    let database_type = match nested {
        Some(name) => {
            r.raw("database_type");
            name
        }
        None => r.string("database_type").unwrap_or_default(),
    };
    let text = r.string("connection_string").unwrap_or_default();
    let migrate = !r.bool("disable_migration").unwrap_or_default();
    r.ignored(&["log_sql"], "has no effect: statements are not logged");
    let store = match database_type.as_str() {
        "sqlite3" => sqlite(r, &text),
        "postgres" => postgres(r, &text),
        other => {
            r.error("database_type", refusal(other));
            None
        }
    };
    store.map(|store| StoreConfig { migrate, ..store })
}

fn refusal(database_type: &str) -> String {
    match database_type {
        "" => "database_type must be set".to_owned(),
        "aws_postgres" => {
            "\"aws_postgres\" (IAM authentication) is not built into this server; use \"postgres\" with a \
             password or a client certificate"
                .to_owned()
        }
        "mysql" | "aws_mysql" => {
            format!("{database_type:?} is not built into this server; use \"postgres\" or \"sqlite3\"")
        }
        other => format!("unsupported database_type: {other}"),
    }
}

fn sqlite(r: &mut Reader, text: &str) -> Option<StoreConfig> {
    let tuning = ["max_open_conns", "max_idle_conns", "conn_max_lifetime"];
    r.ignored(&tuning, "has no effect with SQLite: the pool sizes itself");
    r.ignored(&["ro_connection_string"], "has no effect with SQLite, as in SPIRE");
    r.ignored(&["root_ca_path", "client_cert_path", "client_key_path"], "has no effect with SQLite");
    match StoreConfig::sqlite(text) {
        Ok(store) => Some(store),
        Err(error) => {
            r.error("connection_string", error.to_string());
            None
        }
    }
}

fn postgres(r: &mut Reader, text: &str) -> Option<StoreConfig> {
    r.ignored(
        &["ro_connection_string"],
        "has no effect: requests are answered from memory, which follows the primary's change log",
    );
    let max_open_conns = count(r, "max_open_conns");
    let max_idle_conns = count(r, "max_idle_conns");
    let conn_max_lifetime = r.string("conn_max_lifetime").filter(|text| !text.is_empty());
    let conn_max_lifetime = conn_max_lifetime.and_then(|_| r.duration("conn_max_lifetime"));
    if (1..FEWEST_CONNECTIONS).contains(&max_open_conns) {
        r.warn(
            "max_open_conns",
            format!("this server needs {FEWEST_CONNECTIONS} connections and takes them"),
        );
    }
    let files = ["root_ca_path", "client_cert_path", "client_key_path"];
    let [root, cert, key] = files.map(|key| r.string(key).filter(|path| !path.is_empty()));
    if text.is_empty() {
        r.error("connection_string", "connection_string must be set");
        return None;
    }
    let parsed = PostgresConfig::parse(text, &|name| std::env::var(name).ok())
        .and_then(|config| config.with_files(root, cert.zip(key)));
    match parsed {
        Ok(config) => {
            let config = PostgresConfig { max_open_conns, max_idle_conns, conn_max_lifetime, ..config };
            Some(StoreConfig::postgres(config))
        }
        Err(message) => {
            r.error("connection_string", message);
            None
        }
    }
}

/// A number of connections; 0 where SPIRE's default, which is more than this server uses, holds.
fn count(r: &mut Reader, key: &str) -> u32 {
    let value = r.int(key).unwrap_or_default();
    u32::try_from(value).unwrap_or_else(|_| {
        r.error(key, "must be 0 or more");
        0
    })
}
