//! The key policy: the operator's file, or one for the role that this server runs as.

use svid_plugin_api::PluginError;

use crate::errors::Call;
use crate::session::partition;

/// The policy for the role that this server has assumed. `None` lets KMS use its own default, as SPIRE does for an
/// identity that is no role.
/// # Errors
/// STS does not say who this is.
pub(super) async fn default_policy(sts: &aws_sdk_sts::Client) -> Result<Option<String>, PluginError> {
    let failed = "unable to create policy: cannot get caller identity";
    let call = Call { failed, action: "sts:GetCallerIdentity", on: "the caller" };
    let identity = sts.get_caller_identity().send().await.map_err(|error| call.error(&error))?;
    let (arn, account) = (identity.arn().unwrap_or_default(), identity.account().unwrap_or_default());
    match role_name(arn) {
        Ok(role) => Ok(Some(policy(partition(arn), account, role))),
        Err(reason) => {
            tracing::warn!(
                %reason,
                "This server has not assumed an IAM role, so that its keys get the default key policy of AWS KMS. Assign \
                 it an IAM role, or set key_policy_file"
            );
            Ok(None)
        }
    }
}

/// The role's name in `arn:aws:sts::<account>:assumed-role/<role>/<session>`.
fn role_name(arn: &str) -> Result<&str, String> {
    let resource = arn.rsplit(':').next().unwrap_or_default();
    let mut segments = resource.split('/');
    match (segments.next(), segments.next()) {
        (Some("assumed-role"), Some(role)) => Ok(role),
        (_, Some(_)) => Err(format!("arn does not contain an assumed role: {arn:?}")),
        _ => Err(format!("incomplete resource, expected 'resource-type/resource-id' but got {resource:?}")),
    }
}

/// Everything for the role; for the rest of the account enough to see the key.
fn policy(partition: &str, account: &str, role: &str) -> String {
    let statement = |sid: &str, principal: String, actions: serde_json::Value| {
        serde_json::json!({
            "Sid": sid,
            "Effect": "Allow",
            "Principal": { "AWS": principal },
            "Action": actions,
            "Resource": "*",
        })
    };
    let iam = format!("arn:{partition}:iam::{account}");
    serde_json::json!({
        "Version": "2012-10-17",
        "Statement": [
            statement("Allow full access to the SPIRE Server role", format!("{iam}:role/{role}"), "kms:*".into()),
            statement(
                "Allow KMS console to display the key and policy",
                format!("{iam}:root"),
                serde_json::json!(["kms:Describe*", "kms:List*", "kms:Get*"]),
            ),
        ],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_for_the_assumed_role() {
        let arn = "arn:aws-cn:sts::123456789012:assumed-role/the-role/i-0001f4f25acfd1234";
        assert_eq!(role_name(arn), Ok("the-role"));
        let text = policy(partition(arn), "123456789012", "the-role");
        let policy: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(policy["Statement"][0]["Principal"]["AWS"], "arn:aws-cn:iam::123456789012:role/the-role");
        assert_eq!(policy["Statement"][0]["Action"], "kms:*");
        assert_eq!(policy["Statement"][1]["Principal"]["AWS"], "arn:aws-cn:iam::123456789012:root");
        assert!(
            role_name("arn:aws:iam::123456789012:user/somebody")
                .is_err_and(|text| text.contains("assumed role"))
        );
        assert!(
            role_name("arn:aws:iam::123456789012:root")
                .is_err_and(|text| text.contains("incomplete resource"))
        );
    }
}
