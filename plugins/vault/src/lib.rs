//! HashiCorp Vault and OpenBao: the `vault` upstream authority and the `hashicorp_vault` key manager.
