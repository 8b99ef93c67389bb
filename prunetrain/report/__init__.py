"""What a person sees: tables of networks and runs, progress of training. rich lives here."""
