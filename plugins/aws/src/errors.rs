//! From what AWS answers to refusals that say which permission, which resource and what to do.

use std::error::Error;

use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use svid_plugin_api::{PluginCode, PluginError};

/// A call, as its errors tell of it.
pub(crate) struct Call<'a> {
    /// SPIRE's words for what failed.
    pub(crate) failed: &'static str,
    /// The IAM action.
    pub(crate) action: &'static str,
    /// What it is about: an ARN, an alias.
    pub(crate) on: &'a str,
}

impl Call<'_> {
    pub(crate) fn error<E, R>(&self, error: &SdkError<E, R>) -> PluginError
    where
        E: ProvideErrorMetadata + Error + 'static,
        R: std::fmt::Debug + 'static,
    {
        match error {
            SdkError::ServiceError(answer) => {
                let answer = answer.err();
                self.refused(
                    answer.code().unwrap_or("an unknown error"),
                    answer.message().unwrap_or_default(),
                )
            }
            SdkError::TimeoutError(_) => {
                let text = format!("{}: AWS did not answer {} in time; try again", self.failed, self.action);
                PluginError::new(PluginCode::Unavailable, text)
            }
            error => self.not_sent(role_refused(error), &chain(error)),
        }
    }

    fn refused(&self, code: &str, message: &str) -> PluginError {
        let (kind, remedy) = judge(code);
        let hint = match remedy {
            Remedy::Permission => {
                format!("; the identity that this server uses needs {} on {}", self.action, self.on)
            }
            Remedy::Credentials => "; check the credentials that this server finds, and its clock".to_owned(),
            Remedy::Later => "; try again".to_owned(),
            Remedy::Quota => "; a quota of the account or the CA is used up and has to be raised".to_owned(),
            Remedy::Resource | Remedy::None => format!(" ({})", self.on),
        };
        PluginError::new(kind, format!("{}: {code}: {}{hint}", self.failed, safe(message)))
    }

    /// The request was never answered: no credentials, no connection, no sense. What gives the credentials may be away
    /// like AWS itself, unless it was heard to refuse.
    fn not_sent(&self, is_refused: bool, causes: &str) -> PluginError {
        let lower = causes.to_lowercase();
        let what = if is_refused || lower.contains("credential") || lower.contains("assumerole") {
            "AWS credentials could not be obtained"
        } else {
            "AWS cannot be reached"
        };
        let code = if is_refused { PluginCode::Unauthenticated } else { PluginCode::Unavailable };
        PluginError::new(code, format!("{}: {what}: {causes}", self.failed))
    }
}

enum Remedy {
    Permission,
    Credentials,
    Later,
    Quota,
    Resource,
    None,
}

fn judge(code: &str) -> (PluginCode, Remedy) {
    match code {
        "AccessDeniedException" | "AccessDenied" | "UnauthorizedOperation" | "AuthorizationError" => {
            (PluginCode::PermissionDenied, Remedy::Permission)
        }
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "IncompleteSignature"
        | "AuthFailure"
        | "OptInRequired" => (PluginCode::Unauthenticated, Remedy::Credentials),
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "SlowDown"
        | "KMSInternalException"
        | "DependencyTimeoutException"
        | "KeyUnavailableException"
        | "InternalFailure"
        | "InternalServerError"
        | "InternalServiceError"
        | "InternalServiceException"
        | "IDPCommunicationError"
        | "ServiceUnavailable"
        | "ServiceUnavailableException" => (PluginCode::Unavailable, Remedy::Later),
        "LimitExceededException" => (PluginCode::ResourceExhausted, Remedy::Quota),
        "ResourceNotFoundException"
        | "NotFoundException"
        | "InvalidStateException"
        | "KMSInvalidStateException"
        | "DisabledException"
        | "AlreadyExistsException" => (PluginCode::FailedPrecondition, Remedy::Resource),
        "InvalidArgsException"
        | "InvalidArnException"
        | "InvalidTagException"
        | "MalformedCSRException"
        | "MalformedPolicyDocumentException"
        | "TagException"
        | "ValidationException" => (PluginCode::InvalidArgument, Remedy::Resource),
        _ => (PluginCode::Internal, Remedy::None),
    }
}

/// True if STS answered that the role is not to be had. One that is out of order, or asks to come later, did not refuse.
fn role_refused(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.any(|cause| {
        let code = cause.downcast_ref::<AssumeRoleError>().map(ProvideErrorMetadata::code);
        let code = code.or_else(|| {
            cause.downcast_ref::<AssumeRoleWithWebIdentityError>().map(ProvideErrorMetadata::code)
        });
        code.flatten().is_some_and(|code| judge(code).0 != PluginCode::Unavailable)
    })
}

/// An error with its causes. Cut like every text of AWS.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    safe(&text).to_owned()
}

/// A wrong signature is answered with what should have been signed, and that holds the session token.
fn safe(message: &str) -> &str {
    let end = ["The Canonical String", "The String-to-Sign", "Canonical String for this request"]
        .into_iter()
        .filter_map(|mark| message.find(mark))
        .min();
    message[..end.unwrap_or(message.len())].trim_end()
}

#[cfg(test)]
mod tests {
    use aws_sdk_kms::error::ErrorMetadata;
    use aws_sdk_kms::operation::sign::SignError;

    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        let call = Call { failed: "failed to sign", action: "kms:Sign", on: "arn:aws:kms:r:1:key/x" };
        let check = |code: &str, want: PluginCode, words: &str| {
            let error = call.refused(code, "so AWS says.");
            assert_eq!(error.code, want, "{code}");
            assert!(error.message.starts_with("failed to sign: "), "{error}");
            assert!(error.message.contains(words), "{error}");
        };
        check(
            "AccessDeniedException",
            PluginCode::PermissionDenied,
            "needs kms:Sign on arn:aws:kms:r:1:key/x",
        );
        check("UnrecognizedClientException", PluginCode::Unauthenticated, "check the credentials");
        check("ThrottlingException", PluginCode::Unavailable, "try again");
        check("LimitExceededException", PluginCode::ResourceExhausted, "quota");
        check("NotFoundException", PluginCode::FailedPrecondition, "key/x");
        check("ValidationException", PluginCode::InvalidArgument, "so AWS says");
        check("Surprise", PluginCode::Internal, "Surprise");
    }

    #[test]
    fn credentials_that_nobody_refused_may_come_later() {
        let call = Call { failed: "failed to sign", action: "kms:Sign", on: "arn:aws:kms:r:1:key/x" };
        let away = call.not_sent(false, "dispatch failure: the credentials provider timed out");
        assert_eq!(away.code, PluginCode::Unavailable, "{away}");
        assert!(away.message.contains("AWS credentials could not be obtained: "), "{away}");
        let role = |code: &str| {
            let answer = AssumeRoleError::generic(ErrorMetadata::builder().code(code).build());
            let error: SdkError<SignError, ()> = SdkError::construction_failure(answer);
            call.error(&error)
        };
        let refused = role("AccessDenied");
        assert_eq!(refused.code, PluginCode::Unauthenticated, "{refused}");
        assert!(refused.message.contains("AWS credentials could not be obtained: "), "{refused}");
        assert_eq!(role("ServiceUnavailable").code, PluginCode::Unavailable);
    }

    #[test]
    fn what_should_have_been_signed_is_cut_off() {
        let text = "The request signature does not match.\n\nThe Canonical String for this request should have been\n\
                    'POST\n/\n\nx-amz-security-token:TOKEN'";
        assert_eq!(safe(text), "The request signature does not match.");
        assert_eq!(safe("nothing of the kind"), "nothing of the kind");
    }
}
