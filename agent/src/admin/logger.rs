//! `spire.api.agent.logger.v1.Logger`.

use svid_daemon::log::{LogControl, LogLevel};
use svid_proto::spire::api::agent::logger::v1::logger_server::Logger as LoggerApi;
use svid_proto::spire::api::agent::logger::v1::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use svid_proto::spire::api::types::{self, Logger};
use tonic::{Request, Response, Status, async_trait};

/// The wire's name for a level.
pub fn to_wire(level: LogLevel) -> types::LogLevel {
    match level {
        LogLevel::Panic => types::LogLevel::Panic,
        LogLevel::Fatal => types::LogLevel::Fatal,
        LogLevel::Error => types::LogLevel::Error,
        LogLevel::Warn => types::LogLevel::Warn,
        LogLevel::Info => types::LogLevel::Info,
        LogLevel::Debug => types::LogLevel::Debug,
        LogLevel::Trace => types::LogLevel::Trace,
    }
}

/// The level behind the wire's name; `None` for UNSPECIFIED.
pub fn from_wire(level: types::LogLevel) -> Option<LogLevel> {
    Some(match level {
        types::LogLevel::Unspecified => return None,
        types::LogLevel::Panic => LogLevel::Panic,
        types::LogLevel::Fatal => LogLevel::Fatal,
        types::LogLevel::Error => LogLevel::Error,
        types::LogLevel::Warn => LogLevel::Warn,
        types::LogLevel::Info => LogLevel::Info,
        types::LogLevel::Debug => LogLevel::Debug,
        types::LogLevel::Trace => LogLevel::Trace,
    })
}

pub(super) struct LoggerService(LogControl);

impl LoggerService {
    pub(super) fn new(log: LogControl) -> Self {
        tracing::info!(launch_log_level = %log.launch_level(), "Logger service configured");
        Self(log)
    }

    fn state(&self) -> Response<Logger> {
        Response::new(Logger {
            current_level: to_wire(self.0.level()).into(),
            launch_level: to_wire(self.0.launch_level()).into(),
        })
    }
}

#[async_trait]
impl LoggerApi for LoggerService {
    async fn get_logger(&self, _: Request<GetLoggerRequest>) -> Result<Response<Logger>, Status> {
        tracing::info!("GetLogger Called");
        Ok(self.state())
    }

    async fn set_log_level(&self, request: Request<SetLogLevelRequest>) -> Result<Response<Logger>, Status> {
        let wanted = types::LogLevel::try_from(request.into_inner().new_level)
            .map_err(|_| Status::invalid_argument("unsupported log level"))?;
        let level = from_wire(wanted)
            .ok_or_else(|| Status::invalid_argument("newLevel value cannot be LogLevel_UNSPECIFIED"))?;
        tracing::info!(new_log_level = %level, "SetLogLevel Called");
        self.0.set_level(level);
        Ok(self.state())
    }

    async fn reset_log_level(&self, _: Request<ResetLogLevelRequest>) -> Result<Response<Logger>, Status> {
        tracing::info!(launch_log_level = %self.0.launch_level(), "ResetLogLevel Called");
        self.0.reset_level();
        Ok(self.state())
    }
}
