//! `logger get`, `set` and `reset`.

use svid_daemon::cli::{CliError, Command};
use svid_daemon::flags::Parsed;
use svid_proto::spire::api::server::logger::v1::logger_client::LoggerClient;
use svid_proto::spire::api::server::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use svid_proto::spire::api::types::{LogLevel, Logger};

use super::session::{Session, rpc_context};
use super::{Handler, Outcome, command, flags};

pub fn commands() -> Vec<Command<Handler>> {
    let set_flags = flags("logger set").string(
        "level",
        "",
        "The new log level, one of (panic, fatal, error, warn, info, debug, trace)",
    );
    vec![
        command("logger get", "Gets the logger details", flags("logger get"), |s, f| Box::pin(get(s, f))),
        command("logger set", "Sets the logger details", set_flags, |s, f| Box::pin(set(s, f))),
        command("logger reset", "Reset the logger details to launch level", flags("logger reset"), |s, f| {
            Box::pin(reset(s, f))
        }),
    ]
}

async fn get(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let mut client = LoggerClient::new(session.server().await?);
    let answer =
        client.get_logger(GetLoggerRequest {}).await.map_err(rpc_context("error fetching logger"))?;
    print(session, flags, &answer.into_inner())
}

async fn set(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let word = flags.str("level");
    if word.is_empty() {
        return Err(CliError::new("a value (-level) must be set"));
    }
    let level = parse_level(&word.to_lowercase())
        .ok_or_else(|| CliError::new(format!("the value {word:?} is not a valid setting")))?;
    let mut client = LoggerClient::new(session.server().await?);
    let request = SetLogLevelRequest { new_level: level as i32 };
    let answer = client.set_log_level(request).await.map_err(rpc_context("failed to set log level"))?;
    print(session, flags, &answer.into_inner())
}

async fn reset(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let mut client = LoggerClient::new(session.server().await?);
    let answer = client.reset_log_level(ResetLogLevelRequest {}).await;
    print(session, flags, &answer.map_err(rpc_context("failed to reset logger"))?.into_inner())
}

fn parse_level(word: &str) -> Option<LogLevel> {
    Some(match word {
        "panic" => LogLevel::Panic,
        "fatal" => LogLevel::Fatal,
        "error" => LogLevel::Error,
        "warn" | "warning" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        _ => return None,
    })
}

/// logrus' name of a level.
fn level_name(level: LogLevel) -> Option<&'static str> {
    match level {
        LogLevel::Unspecified => None,
        LogLevel::Panic => Some("panic"),
        LogLevel::Fatal => Some("fatal"),
        LogLevel::Error => Some("error"),
        LogLevel::Warn => Some("warning"),
        LogLevel::Info => Some("info"),
        LogLevel::Debug => Some("debug"),
        LogLevel::Trace => Some("trace"),
    }
}

fn print(session: &mut Session<'_>, flags: &Parsed, logger: &Logger) -> Outcome {
    session.print(flags, "spire.api.types.Logger", logger, |session| {
        let undefined = |which: &str| {
            CliError::new(format!(
                "internal error: returned {which} log level is undefined; please report this as a bug"
            ))
        };
        let current = level_name(logger.current_level()).ok_or_else(|| undefined("current"))?;
        let launch = level_name(logger.launch_level()).ok_or_else(|| undefined("launch"))?;
        Ok(write!(session.out, "Logger Level : {current}\nLaunch Level : {launch}\n\n")?)
    })
}
