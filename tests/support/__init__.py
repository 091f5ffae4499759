"""What tests of several modules share and no fixture can be: functions, and stages too small for anyone else."""
