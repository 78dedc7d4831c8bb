//! AWS: the `aws_pca` upstream authority and the `aws_kms` key manager.
