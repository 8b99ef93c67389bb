"""What the user sees: tables of networks and runs, progress of training, reports. The only package that uses rich."""
