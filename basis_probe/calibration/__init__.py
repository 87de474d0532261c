"""How often the instrument raises false alarms, and how often it finds what is there: measured."""
