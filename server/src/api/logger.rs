//! The Logger service, on the admin socket.

use svid_daemon::log::LogLevel;
use svid_proto::spire::api::server::logger::v1::{self as wire, logger_server::Logger};
use svid_proto::spire::api::types;
use tonic::{Request, Response, Status};

use super::status::invalid_argument;
use super::{call_of, service};

service!(LoggerApi);

impl LoggerApi {
    fn state(&self) -> Response<types::Logger> {
        let log = &self.0.log;
        Response::new(types::Logger {
            current_level: to_wire(log.level()).into(),
            launch_level: to_wire(log.launch_level()).into(),
        })
    }
}

fn to_wire(level: LogLevel) -> types::LogLevel {
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

fn from_wire(number: i32) -> Result<LogLevel, Status> {
    let unsupported = || invalid_argument("unsupported log level");
    Ok(match types::LogLevel::try_from(number).map_err(|_| unsupported())? {
        types::LogLevel::Unspecified => {
            return Err(invalid_argument("newLevel value cannot be LogLevel_UNSPECIFIED"));
        }
        types::LogLevel::Panic => LogLevel::Panic,
        types::LogLevel::Fatal => LogLevel::Fatal,
        types::LogLevel::Error => LogLevel::Error,
        types::LogLevel::Warn => LogLevel::Warn,
        types::LogLevel::Info => LogLevel::Info,
        types::LogLevel::Debug => LogLevel::Debug,
        types::LogLevel::Trace => LogLevel::Trace,
    })
}

#[tonic::async_trait]
impl Logger for LoggerApi {
    async fn get_logger(
        &self,
        _: Request<wire::GetLoggerRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        tracing::info!("GetLogger Called");
        Ok(self.state())
    }

    async fn set_log_level(
        &self,
        request: Request<wire::SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner().new_level;
        let name = types::LogLevel::try_from(wanted).map_or("UNKNOWN", |level| level.as_str_name());
        call.audit.add(|fields| fields.new_log_level = Some(name));
        let level = from_wire(wanted)?;
        tracing::info!(new_log_level = %level, "SetLogLevel Called");
        self.0.log.set_level(level);
        Ok(self.state())
    }

    async fn reset_log_level(
        &self,
        _: Request<wire::ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        tracing::info!(launch_log_level = %self.0.log.launch_level(), "ResetLogLevel Called");
        self.0.log.reset_level();
        Ok(self.state())
    }
}
